"""A finding points to the line that makes what it is about, wherever that is known for sure."""

import importlib.util
import sys
import textwrap
import weakref
from pathlib import Path
from types import FunctionType

import pytest
import torch

from evengrad.nouns import Finding, Record, Setup, Task, TaskError
from evengrad.trial import _training
from evengrad.trial._look_at import with_lines
from evengrad.trial._plan import Plan
from evengrad.trial._training import run_course
from evengrad.trial._where_made import WhereMade

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

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, data):
            return functional.softmax(self.linear(data), dim=-1)  # HEAD

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries = nn.Linear(8, 8)
            self.head = Head()

        def forward(self, data):
            mixed = torch.softmax(self.queries(data) @ data.T, dim=-1) @ data
            return self.head(mixed)

    class Headed(Attentive):
        def forward(self, data):
            return self.head(self.queries(data).relu())

    class Before(Net):
        def forward(self, data):
            mixed = torch.softmax(self.first(data), dim=-1)
            return finish(self.head(mixed))

    def finish(out):
        return functional.softmax(out, dim=-1)

    class Compared(Net):
        kind, call, softmax = "softmax", functional.softmax, "softmax"

        def forward(self, data):
            softmax = self.call
            out = self.head(self.first(data))
            if self.kind == "softmax" and self.softmax and self.softmax.title():
                out = torch.flatten(softmax(out, -1), 1)
            return out

    class Written(Net):
        def forward(self, data):
            if "softmax" in str(data):
                return None
            return (
                self.head(self.first(data))
                .softmax(dim=-1)  # METHOD
                .flatten(1)
            )

    class Inside(Net):
        def forward(self, data):
            out = self.head(self.first(data))
            halves = [functional.softmax(part, dim=-1) for part in (out, out)]
            return functional.softmax(out, dim=-1) + sum(halves)

    class Mine(nn.Linear):
        def __init__(self, width):
            super().__init__(width, width)

        def forward(self, data):
            return super().forward(data) * 2

    class Deep(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.linear = Mine(8)  # MINE
            self.plain = Plain(8, 8)  # PLAIN
            self.below = Deep(depth - 1) if depth else nn.Identity()  # BELOW

        def forward(self, data):
            return self.below(self.plain(self.linear(data)))

    class Plain(nn.Linear):
        pass

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
    made = WhereMade()
    made.fresh_model(task)
    (told,) = with_lines((finding,), Record(setup=setup), made)
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


@pytest.mark.parametrize(
    ("model", "place", "at"),
    [
        ("Headed", "head.linear", "HEAD"),
        ("Written", "head", "METHOD"),
        ("Attentive", "head.linear", ""),  # the model that holds the head calls one too, for its attention
        ("Net", "first", "FUNCTION"),
        ("Net", "(model)", "FUNCTION"),
        ("Net", "head#2", ""),  # one call of several
        ("Before", "head", ""),  # what it calls goes into the layer; the other is called by a function
        ("Compared", "head", ""),  # texts, attributes and variables of the name, none of them a call
        ("Inside", "head", ""),
    ],
)
def test_the_only_call_behind_the_layer_is_told_and_nothing_that_only_has_its_name(mine, model, place, at):
    told = looked_at("EG501", place, task(mine, getattr(mine, model)), message="the output is a softmax already")
    assert told.rpartition(" in ")[0] == (f"mine.py:{line(at)}" if at else "")
    assert at or told == "as before"


def test_a_layer_that_extends_one_of_torch_is_on_the_line_where_it_is_constructed(mine):
    def told(place):
        return looked_at("EG101", place, task(mine, lambda: torch.nn.Sequential(mine.Deep(1), torch.nn.Linear(8, 4))))

    for inside in ("0", "0.below"):
        assert told(f"{inside}.linear") == f"mine.py:{line('MINE')} in Deep.__init__"
        assert told(f"{inside}.plain") == f"mine.py:{line('PLAIN')} in Deep.__init__"
    assert told("0.below.below") == f"mine.py:{line('BELOW')} in Deep.__init__"


def test_a_library_that_wraps_the_constructors_of_torch_changes_no_line(mine, monkeypatch):
    plain = torch.nn.Linear.__init__

    def wrapped(*args, **kwargs):
        return plain(*args, **kwargs)

    path = Path(torch.__file__).parent / "wrapping.py"
    monkeypatch.setattr(torch.nn.Linear, "__init__", of_file(wrapped, path))
    built = WhereMade()
    built.fresh_model(task(mine, lambda: torch.nn.Sequential(mine.Deep(1))))
    assert built.layers["0.linear"] == f"mine.py:{line('MINE')} in Deep.__init__"


def of_file(function, path):
    """Make a function that seems to stand in another file."""
    return FunctionType(
        function.__code__.replace(co_filename=str(path)), function.__globals__, closure=function.__closure__
    )


def test_what_is_built_of_the_same_class_within_its_constructor_has_a_line_of_its_own(mine, monkeypatch):
    monkeypatch.setattr(mine.Deep, "forward", torch.nn.Identity.forward)
    built = WhereMade()
    built.fresh_model(task(mine, lambda: torch.nn.Sequential(mine.Deep(1))))
    assert built.layers["0.below"] == f"mine.py:{line('BELOW')} in Deep.__init__"


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


def test_a_profiler_that_the_model_sets_stays(mine):
    def model():
        built = mine.model()
        sys.setprofile(mark)
        return built

    mark = lambda *one: None  # noqa: E731
    try:
        looked_at("EG601", "optimizer", task(mine, model))
        assert sys.getprofile() is mark
    finally:
        sys.setprofile(None)


def test_a_profiler_that_the_model_puts_back_too_late_takes_itself_away(mine):
    def model():
        kept.append(sys.getprofile())
        return mine.model()

    kept = []
    looked_at("EG601", "optimizer", task(mine, model))
    try:
        sys.setprofile(kept[0])
        line("LOSS")
        assert sys.getprofile() is None
    finally:
        sys.setprofile(None)


def test_no_profiler_is_left_where_a_factory_raises(mine):
    def model():
        raise ValueError("no model today")

    with pytest.raises(TaskError, match="no model today"):
        looked_at("EG601", "optimizer", task(mine, model))
    assert sys.getprofile() is None


def test_what_a_factory_makes_and_throws_away_is_not_kept_alive(mine):
    def model():
        thrown = torch.nn.Linear(3, 3)
        gone = weakref.ref(thrown)
        del thrown
        alive.append(gone() is not None)
        return mine.model()

    alive = []
    looked_at("EG601", "optimizer", task(mine, model))
    assert alive == [False]


@pytest.mark.parametrize("label", ["untreated", "another"])
def test_a_training_builds_one_model_and_one_optimizer(mine, label):
    def model():
        calls.append("model")
        return mine.Net()

    def optimizer(built):
        calls.append("optimizer")
        return mine.optimizer(built)

    calls = []
    plan = Plan(task=task(mine, model, optimizer=optimizer), label=label, seed=0, steps=40, stage="scout")
    assert run_course(plan, lambda count: None).findings
    assert calls == ["model", "optimizer"]


def test_ctrl_c_while_lines_are_looked_for_leaves_the_training(mine, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    plan = Plan(task=task(mine, mine.Net), label="untreated", seed=0, steps=40, stage="scout")
    whole = run_course(plan, lambda count: None)
    monkeypatch.setattr(_training, "with_lines", interrupted)
    cut = run_course(plan, lambda count: None)
    assert (cut.interrupted, whole.interrupted) == (True, False)
    assert (cut.trial.losses, cut.trial.metric, cut.trial.error) == (whole.trial.losses, whole.trial.metric, "")
    assert [one.code for one in cut.findings] == [one.code for one in whole.findings] != []
    assert cut.trial.findings == whole.trial.findings


def test_a_training_points_there_and_its_numbers_are_the_same(mine):
    def course(label):
        plan = Plan(task=task(mine, mine.Net), label=label, seed=0, steps=40, stage="scout")
        return run_course(plan, lambda count: None)

    pointed, plain = course("untreated"), course("another")
    assert pointed.trial.losses == plain.trial.losses
    places = {one.code: one.look_at for one in pointed.findings}
    assert places["EG501"] == f"mine.py:{line('FUNCTION')} in Net.forward"
    assert {one.code: one.look_at for one in plain.findings}["EG501"] == f"mine.py:{line('FORWARD')} in Net.forward"
