"""A patch: it applies, and the file that it leads to makes the treated task, whatever the source looks like."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evengrad.treat import (
    AddNormalization,
    AddResidual,
    ClipGradients,
    Combined,
    Reinitialize,
    ScaleLearningRate,
    SwapActivation,
    SwapOptimizer,
)
from evengrad.trial._patch import patch_of

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


SOURCES = {
    "a def": MAKE + call(),
    "a def with a name": f"def make():\n    net = {STACK}  # as in the paper\n    return net  # done\n\n\n" + call(),
    "a lambda": call(f"lambda: {STACK}"),
    "a lambda over several lines": call(
        "lambda: nn.Sequential(\n        nn.Linear(6, 8),\n        nn.Sigmoid(),\n        nn.Linear(8, 8),\n"
        "        nn.Sigmoid(),\n        nn.Linear(8, 1),\n    )"
    ),
    "a lambda in a function": "def get():\n    width = 8\n    return "
    + call("lambda: Net(width)").removeprefix("task = ").replace("\n", "\n    ").rstrip()
    + "\n\n\ntask = get()\n",
    "a class": call("Net"),
    "a partial": call("functools.partial(Net, 8)"),
    "a partial of a def": "def make(width):\n    return Net(width)\n\n\n" + call("functools.partial(make, width=8)"),
    "a closure": "def sized(width):\n    def make():\n        return Net(width)\n\n    return make\n\n\n"
    + call("sized(8)"),
    "an activation handed over": "def deep(kind):\n    def make():\n        return nn.Sequential(\n"
    "            nn.Linear(6, 8), kind(), nn.Linear(8, 8), kind(), nn.Linear(8, 1)\n        )\n\n    return make\n\n\n"
    + call("deep(nn.Sigmoid)"),
    "a method": f"class Maker:\n    def make(self):\n        return {STACK}\n\n\nmaker = Maker()\n"
    + call("maker.make"),
    "a decorated def": "def told(function):\n    @functools.wraps(function)\n    def inner():\n"
    "        return function()\n\n    return inner\n\n\n@told\n" + MAKE + call(),
    "several returns": "def make(small=False):\n    if small:\n        return nn.Linear(6, 1)\n"
    f"    return {STACK}\n\n\n" + call(),
    "a return on the line of an if": f"def make(big=True):\n    if big: return {STACK}\n    return None\n\n\n" + call(),
    "a def on one line": f"def make(): return {STACK}\n\n\n" + call(),
    "a def below a with": f"def make():\n    with torch.no_grad():\n        return {STACK}\n\n\n" + call(),
}
TREATMENTS = {
    "swap": SwapActivation(to="tanh"),
    "norm": AddNormalization(kind="layer"),
    "residual": AddResidual(),
    "weights": Reinitialize(),
    "lsuv": Reinitialize(data_driven=True),
    "clip": ClipGradients(max_norm=0.5),
    "rate": ScaleLearningRate(factor=0.1),
    "optimizer": SwapOptimizer(to="adamw"),
    "swap and weights": Combined((SwapActivation(to="relu"), Reinitialize())),
    "norm and residual": Combined((AddNormalization(kind="layer"), AddResidual())),
    "norm, rate and clip": Combined((AddNormalization(kind="layer"), ScaleLearningRate(factor=0.5), ClipGradients())),
}


def imported(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a file and import it; its folder is the working directory, on the import path, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = set(sys.modules)

    def write(text, name="training"):
        path = tmp_path / f"{name}.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return imported(path, name)

    yield write
    for name in set(sys.modules) - names:
        del sys.modules[name]


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


def want_equal(came, wanted):
    """Want the same modules and parameters, and with equal weights the same outputs."""
    torch.manual_seed(0)
    one = came.model()
    torch.manual_seed(0)
    other = wanted.model()
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


def check(load, module, treatment, *, name="training"):
    """Patch a module's task, apply the diff in three ways, and import what comes out; returns the patch."""
    path = Path(module.__file__)
    raw = path.read_bytes()
    treated = treatment.treat_task(module.task)
    patch = patch_of(module.task, treatment, treated)
    assert patch.kind == "diff", patch.why
    assert path.read_bytes() == raw, "the user's file was written"
    edited = patched(raw.decode(), patch.text).encode()
    for program in (["git", "apply", "-p1", "--check", "-"], ["patch", "-p1", "--dry-run", "--binary", "--force"]):
        subprocess.run(program, input=patch.text.encode(), check=True, capture_output=True)
    again = load(edited, f"{name}_patched")
    want_equal(again.task, treated.subject)
    return patch


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_patched_file_makes_the_treated_task(load, source, treatment):
    module = load(HEAD + NET + source)
    check(load, module, treatment)


def test_a_diff_of_words_changes_the_words_and_nothing_else(load):
    module = load(HEAD + MAKE + call())
    for treatment, before, after in [
        (SwapActivation(to="gelu"), "nn.Sigmoid()", "nn.GELU()"),
        (ScaleLearningRate(factor=0.1), "lr=0.1", "lr=0.01"),
        (SwapOptimizer(to="adam", lr=0.02), "SGD(model.parameters(), lr=0.1)", "Adam(model.parameters(), lr=0.02)"),
    ]:
        patch = check(load, module, treatment)
        removed = [line[1:] for line in patch.text.splitlines() if line.startswith("-")][1:]
        added = [line[1:] for line in patch.text.splitlines() if line.startswith("+")][1:]
        assert [line.replace(before, after) for line in removed] == added


def test_activations_in_the_model_class_are_swapped_there(load):
    patch = check(load, load(HEAD + NET + call("Net")), SwapActivation(to="tanh"))
    assert "+        self.act = nn.Tanh()\n" in patch.text
    assert "set_submodule" not in patch.text


def test_an_activation_that_is_handed_over_is_changed_where_it_is_handed_over(load):
    patch = check(load, load(HEAD + NET + SOURCES["an activation handed over"]), SwapActivation(to="tanh"))
    assert "+    model=deep(nn.Tanh),\n" in patch.text


def test_an_activation_that_stays_elsewhere_is_not_swapped_by_words(load):
    make = MAKE.replace("nn.Linear(8, 1)", "nn.Linear(8, 1), nn.Sigmoid()")
    patch = check(load, load(HEAD + make + call()), SwapActivation(to="tanh"))
    assert "set_submodule" in patch.text


def test_what_a_snippet_needs_is_imported_where_the_module_lacks_it(load):
    load(HEAD + NET, "nets")
    text = (
        '"""Only the call."""\nimport nets\nfrom evengrad import Task\nfrom torch.nn.functional import mse_loss\n'
        "from torch.optim import SGD\n\n\ndef make():\n    return nets.Net()\n\n\n"
        "task = Task(model=make, optimizer=lambda m: SGD(m.parameters(), 0.1), loss=mse_loss, train=nets.train,"
        " validate=nets.validate, steps=2)\n"
    )
    module = load(text)
    patch = check(load, module, AddResidual())
    assert "+import torch\n" not in patch.text
    assert "+from torch import nn\n" in patch.text
    assert patch.files == ("training.py",)
    patch = check(load, module, SwapOptimizer(to="adam"))
    assert "+import torch\n" in patch.text


def test_a_model_and_a_task_in_two_files_are_both_changed(load):
    load(HEAD + NET + MAKE, "nets")
    text = (
        "import torch\nfrom torch import nn\nfrom evengrad import Task\nfrom nets import make, train, validate\n\n\n"
        + call()
    )
    module = load(text)
    treatment = Combined((AddNormalization(kind="layer"), ScaleLearningRate(factor=0.5)))
    treated = treatment.treat_task(module.task)
    patch = patch_of(module.task, treatment, treated)
    assert patch.kind == "diff", patch.why
    assert sorted(patch.files) == ["nets.py", "training.py"]
    subprocess.run(["git", "apply", "-p1", "-"], input=patch.text.encode(), check=True, capture_output=True)
    for name in ("nets", "training"):
        del sys.modules[name]
    want_equal(imported("training.py", "training").task, treated.subject)


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("    ", "\t").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace('"""A training."""', '"""Übung \u2028 \x0c 訓練 🙂."""').encode(),
        lambda text: text.replace(HEAD.splitlines()[0], "# -*- coding: utf-8 -*-\n# Licence: none").encode(),
        lambda text: text.rstrip().encode(),
    ],
    ids=["tabs", "carriage returns", "a byte-order mark", "not ASCII", "comments first", "no newline at the end"],
)
def test_a_source_keeps_its_tabs_line_ends_and_letters(load, change, treatment):
    module = load(change(HEAD + MAKE + call()))
    patch = check(load, module, treatment)
    changed = [line for line in patch.text.split("\n")[2:] if line.startswith("+")]
    if b"\r" in change(HEAD):
        assert all(line.endswith("\r") for line in changed)
    if b"\t" in change(HEAD):
        assert not any(line.startswith("+ ") for line in changed)


def test_numbers_of_the_training_go_into_the_call(load):
    text = call().replace("    steps=3,\n", "    steps=3,\n    clip=2.0,  # found by trying\n")
    patch = check(load, load(HEAD + MAKE + text), ClipGradients(max_norm=0.25))
    assert "+    clip=0.25,  # found by trying\n" in patch.text


def test_two_lambdas_on_one_line_are_told_apart(load):
    text = (
        f"task = Task(model=lambda: {STACK}, optimizer={SGD}, loss=lambda a, b: ((lambda c: c)(a) - b).abs().mean(), "
        "train=train, validate=lambda model: 0.0, steps=2)\n"
    )
    for treatment in TREATMENTS.values():
        check(load, load(HEAD + text), treatment)


def test_of_two_calls_of_task_the_one_that_made_the_task_is_changed(load):
    other = call("Net").replace("task = ", "other = ").replace("steps=3", "steps=4")
    module = load(HEAD + NET + other + "\n\n" + call("Net"))
    check(load, module, AddNormalization(kind="layer"))
