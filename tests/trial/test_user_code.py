"""An error in the user's own code names the file and the line of it, wherever the training runs."""

import importlib.util
import re
import sys

import pytest

import evengrad
from evengrad.cli import main

SOURCE = '''"""A task whose functions raise, one at a time."""

import torch
from torch import nn

import evengrad

WRONG = "nothing"
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(64, 8, generator=generator)
labels = inputs[:, :2].argmax(1)
told = {}


def look(what):
    if what == WRONG:
        return told[what]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, data):
        if WRONG == "forward":
            raise KeyError("x")  # forward
        return self.body(data)


def model():
    if WRONG == "model":
        raise KeyError("x")  # model
    return Net()


def optimizer(model):
    if WRONG == "optimizer":
        raise KeyError("x")  # optimizer
    return torch.optim.Adam(model.parameters(), lr=0.01)


def loss(output, target):
    if WRONG == "loss":
        return {}["x"]  # loss
    return nn.functional.cross_entropy(output, target)


def train():
    if WRONG == "train":
        raise KeyError("x")  # train
    return batches()


def batches():
    for step in range(8):
        if WRONG == "batches" and step == 5:
            raise KeyError("x")  # batches
        yield inputs, labels


def validate(model):
    if WRONG == "validate":
        raise KeyError("x")  # validate
    return (model(inputs).argmax(1) == labels).float().mean().item()


def rate(step):
    if WRONG == "rate" and step == 3:
        raise KeyError("x")  # rate
    return 1.0


def schedule(optimizer):
    if WRONG == "schedule":
        raise KeyError("x")  # schedule
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def after_step(model):
    if WRONG == "after_step":
        raise KeyError("x")  # after_step


task = evengrad.Task(
    model=model,
    optimizer=optimizer,
    loss=loss,
    train=train,
    validate=validate,
    schedule=schedule,
    after_step=after_step,
    steps=16,
)
'''
FUNCTIONS = (
    "model",
    "forward",
    "optimizer",
    "loss",
    "train",
    "batches",
    "validate",
    "schedule",
    "rate",
    "after_step",
)


def written(folder, wrong):
    path = folder / "own_task.py"
    path.write_text(SOURCE.replace('"nothing"', f'"{wrong}"'))
    line = next(number for number, text in enumerate(SOURCE.splitlines(), 1) if text.endswith(f"  # {wrong}"))
    return path, f"KeyError: 'x' (own_task.py, line {line}, in {wrong})"


def loaded(path):
    spec = importlib.util.spec_from_file_location("own_task", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("wrong", FUNCTIONS)
def test_what_a_function_of_a_task_raises_names_file_and_line(wrong, tmp_path):
    path, place = written(tmp_path, wrong)
    with pytest.raises(evengrad.EvengradError, match=re.escape(place)):
        evengrad.repair(loaded(path).task, seeds=1, engine="here")


@pytest.mark.parametrize("wrong", ["optimizer", "batches"])
def test_what_is_raised_in_another_process_names_file_and_line(wrong, tmp_path, monkeypatch):
    path, place = written(tmp_path, wrong)
    module = loaded(path)
    monkeypatch.setitem(sys.modules, "own_task", module)
    with pytest.raises(evengrad.EvengradError, match=re.escape(place)):
        evengrad.repair(module.task, seeds=1, engine="local")


def test_the_command_line_says_file_and_line_in_its_one_line(tmp_path, capsys, monkeypatch):
    path, place = written(tmp_path, "loss")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["repair", f"{path}:task", "--seeds", "1", "--engine", "here"]) == 2
    error = capsys.readouterr().err
    assert place in error
    assert error.count("\n") == 1
