"""A finding points to the line that makes what it is about, wherever that is known for sure."""

import importlib.util
import sys
import textwrap

import pytest
import torch

from evengrad.nouns import Finding, Record, Setup, Task
from evengrad.trial._look_at import with_lines
from evengrad.trial._plan import Plan
from evengrad.trial._training import run_course

FILE = """
    import torch
    from torch import nn
    from torch.nn import functional

    def model():
        layers = [nn.Linear(8, 8)]
        for _ in range(2):
            layers.append(nn.Tanh())
        return nn.Sequential(
            *layers,
            nn.Linear(8, 4),
            nn.Softmax(dim=-1),  # OUTPUT
        )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)  # FIRST
            self.head = nn.Linear(8, 4)

        def forward(self, data):  # FORWARD
            hidden = torch.tanh(self.first(data))
            out = self.head(hidden)
            return functional.softmax(out, dim=-1)  # FUNCTION

    class Twice(Net):
        def forward(self, data):  # TWICE
            hidden = functional.softmax(self.first(data), dim=-1)
            return functional.softmax(self.head(hidden), dim=-1)

    def optimizer(model):
        rate = 1e-3
        return torch.optim.SGD(  # OPTIMIZER
            model.parameters(), lr=rate
        )

    def loss(output, target):  # LOSS
        return functional.cross_entropy(output, target)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(FILE))
    spec = importlib.util.spec_from_file_location("mine_of_a_test", tmp_path / "mine.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine_of_a_test", module)
    spec.loader.exec_module(module)
    return module


def line(mark):
    return next(at for at, text in enumerate(textwrap.dedent(FILE).splitlines(), 1) if text.endswith(f"# {mark}"))


def task(mine, model, **changes):
    batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
    settings = {
        "model": model,
        "optimizer": mine.optimizer,
        "loss": mine.loss,
        "train": lambda: [batch],
        "validate": lambda built: 0.0,
        "steps": 40,
    }
    return Task(**(settings | changes))


def looked_at(code, where, task, *, message="", setup=None):
    finding = Finding(code=code, symptom="", severity="warning", where=(where,), message=message, look_at="as before")
    (told,) = with_lines((finding,), Record(setup=setup), task, seed=0)
    return told.look_at


@pytest.mark.parametrize("code", ["EG601", "EG602", "EG605", "EG109"])
def test_settings_of_the_optimizer_are_on_the_line_that_makes_it(mine, code):
    assert looked_at(code, "optimizer", task(mine, mine.model)) == f"mine.py:{line('OPTIMIZER')} in optimizer"


def test_weights_that_torch_does_not_see_are_not_the_optimizers_fault(mine):
    setup = Setup(unregistered=("layers[0]",))
    assert looked_at("EG109", "layers[0]", task(mine, mine.model), setup=setup) == "as before"


def test_an_output_activation_is_on_its_own_line_inside_of_a_longer_call(mine):
    assert looked_at("EG501", "4", task(mine, mine.model)) == f"mine.py:{line('OUTPUT')} in model"


def test_one_that_forward_calls_is_on_the_only_line_that_calls_it(mine):
    said = {"message": "the output is a softmax already"}
    assert looked_at("EG501", "head", task(mine, mine.Net), **said) == f"mine.py:{line('FUNCTION')} in Net.forward"
    assert looked_at("EG501", "head", task(mine, mine.Twice), **said) == "as before"  # which of two, nobody knows


def test_a_layer_is_on_the_line_of_its_constructor(mine):
    assert looked_at("EG101", "first", task(mine, mine.Net)) == f"mine.py:{line('FIRST')} in Net.__init__"


def test_what_forward_does_between_layers_stays_where_forward_is(mine):
    assert looked_at("EG108", "first", task(mine, mine.Net)) == "as before"
    assert looked_at("EG101", "(model)", task(mine, mine.Net)) == "as before"


def test_a_loss_is_where_it_is_defined_unless_it_is_torchs_own(mine):
    assert looked_at("EG507", "target", task(mine, mine.model)) == f"mine.py:{line('LOSS')} in loss"
    plain = task(mine, mine.model, loss=torch.nn.functional.cross_entropy)
    assert looked_at("EG507", "target", plain) == "as before"


def test_a_profiler_that_is_at_work_is_left_alone(mine):
    calls = []
    mark = lambda *one: calls.append(one)  # noqa: E731
    sys.setprofile(mark)
    try:
        assert looked_at("EG601", "optimizer", task(mine, mine.model)) == "as before"
        assert sys.getprofile() is mark
    finally:
        sys.setprofile(None)
    assert looked_at("EG601", "optimizer", task(mine, mine.model)) != "as before"
    assert sys.getprofile() is None


def test_a_training_points_there_and_its_numbers_are_the_same(mine):
    def course(label):
        plan = Plan(task=task(mine, mine.Net), label=label, seed=0, steps=40, stage="scout")
        return run_course(plan, lambda count: None)

    pointed, plain = course("untreated"), course("another")
    assert pointed.trial.losses == plain.trial.losses
    places = {one.code: one.look_at for one in pointed.findings}
    assert places["EG501"] == f"mine.py:{line('FUNCTION')} in Net.forward"
    assert {one.code: one.look_at for one in plain.findings}["EG501"] == f"mine.py:{line('FORWARD')} in Net.forward"
