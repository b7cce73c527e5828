"""Sources that describe a training, and what a diff makes of them."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evengrad.trial._patch import patch_of

PROGRAMS = (["git", "apply", "-p1", "--check", "-"], ["patch", "-p1", "--dry-run", "--binary", "--force"])
HEAD = '''\
"""A training."""
import functools

import torch
from torch import nn

from evengrad import Task


def train():
    inputs = torch.linspace(-1, 1, 48).reshape(8, 6)
    return [(inputs, inputs[:, :1]), (-inputs, inputs[:, :1])]


def validate(model):
    return 0.0


'''
NET = """\
class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.act = nn.Sigmoid()
        self.inner = nn.Linear(width, width)
        self.act2 = nn.Sigmoid()
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        return self.last(self.act2(self.inner(self.act(self.first(x)))))


"""
CALL = """\
task = Task(
    model={model},
    optimizer={optimizer},
    loss=nn.functional.mse_loss,
    train=train,
    validate=validate,
    steps=3,
)
"""
SGD = "lambda model: torch.optim.SGD(model.parameters(), lr=0.1)"
STACK = "nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 1))"
MAKE = f"def make():\n    return {STACK}\n\n\n"


def call(model="make", optimizer=SGD):
    return CALL.format(model=model, optimizer=optimizer)


def imported(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def loading(tmp_path, monkeypatch):
    """Write a file and import it; its folder is the working directory, on the import path, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"training", "training_patched", "nets"}

    def write(text, name="training"):
        names.add(name)
        path = tmp_path / f"{name}.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return imported(path, name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def patched(old, diff):
    """Apply a unified diff to the text of one file; every line that it does not change must be there."""
    old_lines, new_lines, at = re.findall(r"[^\n]*\n|[^\n]+", old), [], 0
    lines = re.findall(r"[^\n]*\n", diff)
    for index, line in enumerate(lines[2:], start=2):
        if header := re.match(r"@@ -(\d+)(?:,(\d+))? ", line):
            begin = int(header[1]) - (header[2] != "0")
            new_lines += old_lines[at:begin]
            at = begin
            continue
        bare = line[1:-1] if lines[index + 1 : index + 2] == ["\\ No newline at end of file\n"] else line[1:]
        if line[0] in " -":
            assert old_lines[at] == bare
            at += 1
        if line[0] in " +":
            new_lines.append(bare)
    return "".join([*new_lines, *old_lines[at:]])


def want_equal(came, wanted, *, modules=True):
    """Want the same parameters, outputs and optimizer, and the same modules unless functions stand for them."""
    torch.manual_seed(0)
    one = came.model()
    torch.manual_seed(0)
    other = wanted.model()
    if modules:
        kinds = [[(name, type(part).__name__) for name, part in model.named_modules()] for model in (one, other)]
        assert kinds[0] == kinds[1]
    assert [(n, p.shape) for n, p in one.named_parameters()] == [(n, p.shape) for n, p in other.named_parameters()]
    one.load_state_dict(other.state_dict())
    inputs = torch.randn(5, 6)
    assert torch.equal(one.eval()(inputs), other.eval()(inputs))
    steps = [task.optimizer(model) for task, model in ((came, one), (wanted, other))]
    assert type(steps[0]) is type(steps[1])
    for left, right in zip(*(step.param_groups for step in steps), strict=True):
        assert left["lr"] == pytest.approx(right["lr"], rel=1e-12)
        assert left | {"params": 0, "lr": 0} == right | {"params": 0, "lr": 0}
    assert came.clip == wanted.clip


def check(load, module, treatment, *, modules=True, programs=False):
    """Patch a module's task, apply the diff, import what comes out; returns the patch. git and patch may try it too."""
    path = Path(module.__file__)
    raw = path.read_bytes()
    treated = treatment.treat_task(module.task)
    patch = patch_of(module.task, treatment, treated)
    assert patch.kind == "diff", patch.why
    assert path.read_bytes() == raw, "the user's file was written"
    edited = patched(raw.decode(), patch.text).encode()
    for program in PROGRAMS if programs else ():
        if shutil.which(program[0]):
            subprocess.run(program, input=patch.text.encode(), check=True, capture_output=True)
    again = load(edited, "training_patched")
    want_equal(again.task, treated.subject, modules=modules)
    return patch
