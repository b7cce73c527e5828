"""Rules of units: collapsed, gates stuck; on readings made by hand and in small trainings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import LayerReading, ParameterReading, Reading, Record, Setup

BY_CODE = {rule.code: rule for rule in rules.ALL}


def matrix(name, spread=1.0, grad_spread=1.0, grad=0.1, **settings):
    """A weight matrix whose units and their gradients differ by this."""
    settings = {"numel": 16, "fan_in": 4, "weight_rms": 0.5, "weight_mean": 0.0} | settings
    return ParameterReading(name=name, row_spread=spread, grad_row_spread=grad_spread, grad_rms=grad, **settings)


def collapsed(*weights, setup=None, **settings):
    settings = {"grad_norms": (1.0,) * len(weights)} | settings
    reading = Reading(weights=weights, **settings)
    return BY_CODE["EG303"].sign(reading, Record(readings=(reading,), setup=setup))


def zero(name, grad=0.0, grad_spread=0.0):
    return matrix(name, 0.0, grad_spread, grad, weight_rms=0.0)


HEAD = matrix("head.weight")


VANISHED = tuple(
    LayerReading(name=f"v{index}", kind="Linear", weighted=True, numel=1, grad_rms=grad, activation_rms=1.0)
    for index, grad in enumerate((1e-6, 1e-4, 1e-2, 1.0))
)


# --- EG301: a single living unit ---


def narrow(dead, *, units=5, name="1", observations=64, nonlinearity="relu"):
    return LayerReading(
        name=name, kind="ReLU", nonlinearity=nonlinearity, units=units, observations=observations, dead_frac=dead
    )


BEHIND = LayerReading(name="2", kind="Linear", weighted=True, grad_rms=1.0, activation_rms=1.0)


@pytest.mark.parametrize(
    ("layers", "speaks"),
    [
        ((narrow(0.800000011920929), BEHIND), True),
        ((narrow(0.6), BEHIND), False),
        ((narrow(0.75, units=4), BEHIND), True),
        ((narrow(2 / 3, units=3), BEHIND), False),
        ((narrow(8 / 9, units=9), BEHIND), True),
        ((BEHIND, narrow(0.8)), False),  # the output of the network
        ((narrow(0.8, nonlinearity="gelu"), BEHIND), None),
        ((narrow(0.8, observations=31), BEHIND), None),
    ],
)
def test_a_layer_with_a_single_living_unit_in_front_of_another_is_a_choke(layers, speaks):
    seen = BY_CODE["EG301"].sign(Reading(layers=layers), Record())
    assert (seen if seen is None else seen.speaks) == speaks
    assert not speaks or (seen.where, seen.only_if_sick) == (("1",), True)


def test_a_choke_is_told_in_a_sick_run_and_explains_it():
    flat = [Reading(step=step, loss=1.0, layers=(narrow(0.8), BEHIND)) for step in range(3)]
    assert findings_of(Record(readings=tuple(flat))) == ()
    sick = [replace(one, layers=(narrow(0.8), narrow(1.0, name="3"), BEHIND)) for one in flat]
    (finding,) = findings_of(Record(readings=tuple(sick)))
    assert (finding.where, finding.severity) == (("1", "3"), "critical")
    ended = [*flat, replace(sick[0], step=9, layers=(narrow(0.8), VANISHED[0], *VANISHED))]
    assert [(one.code, one.follows) for one in findings_of(Record(readings=tuple(ended)))] == [
        ("EG301", ()),
        ("EG101", ("EG301",)),
    ]


# --- EG303 ---


@pytest.mark.parametrize(
    ("spread", "grad_spread", "speaks"),
    [
        (0.0, 0.0, True),
        (0.0099, 0.0099, True),
        (2.0**-8, 2.0**-8, True),  # what bfloat16 rounds
        (0.0101, 0.0, False),
        (0.001, 0.0101, False),
        (0.001, 1.0, False),
        (1.0, 0.0, False),
        (math.nan, 0.0, False),
        (0.0, math.nan, False),
    ],
)
def test_units_collapse_where_neither_weights_nor_gradients_differ_by_a_percent(spread, grad_spread, speaks):
    seen = collapsed(matrix("a.weight", spread, grad_spread), HEAD)
    assert seen.speaks == speaks
    assert seen.where == (("a.weight",) if speaks else ())


def test_equal_weights_in_several_layers_are_told_although_biases_make_the_gradients_differ():
    equal = [matrix(f"{place}.weight", 0.0, 0.4, weight_mean=0.5) for place in range(2)]
    assert collapsed(*equal, HEAD).where == ("0.weight", "1.weight")
    assert collapsed(equal[0], matrix("1.weight", 0.0, 0.51, weight_mean=0.5), HEAD).where == ("0.weight",)
    assert collapsed(equal[0], HEAD).speaks is False
    assert collapsed(*[replace(one, weight_rms=0.0) for one in equal], HEAD).speaks is False


def test_zero_weights_whose_gradients_differ_are_a_branch_or_a_head_and_silent():
    assert collapsed(matrix("up.weight"), zero("down.weight", 0.1, 0.9), HEAD).speaks is False
    assert collapsed(matrix("a.weight"), zero("head.weight", 0.1, 1.0)).speaks is False
    assert collapsed(zero("head.weight", 0.1, 1.0)).speaks is False


def test_a_zero_weight_before_a_zero_weight_waits_for_its_gradient():
    modulation, head = zero("modulation.weight"), zero("head.weight", 0.1, 0.9)
    assert collapsed(matrix("a.weight"), modulation, modulation, head).speaks is False


def test_a_model_of_nothing_but_equal_rows_without_a_gradient_is_told():
    seen = collapsed(zero("0.weight"), zero("2.weight"), zero("4.weight"))
    assert seen.where == ("0.weight", "2.weight", "4.weight")
    assert seen.severity == "critical"
    assert "(zeros) and get no gradient" in seen.message
    assert seen.cause.startswith("an initialisation that makes the units of a layer the same: zeros")
    assert collapsed(zero("0.weight"), zero("2.weight", 0.1, 1.0)).where == ("0.weight",)


def test_where_some_weights_are_frozen_the_others_do_not_tell_of_all():
    frozen = Setup(frozen=("body.weight",))
    weights = zero("0.weight"), zero("2.weight", 0.1, 1.0)
    assert collapsed(*weights, setup=frozen).speaks is False
    assert collapsed(*weights, setup=Setup()).speaks is True


def test_zero_layers_are_told_where_the_gradient_reaches_biases_only():
    drawn = matrix("conv.weight", grad=0.0, grad_spread=0.0)
    assert collapsed(drawn, zero("0.weight"), zero("2.weight")).where == ("0.weight", "2.weight")
    assert collapsed(drawn, zero("0.weight")).speaks is False
    assert collapsed(drawn, zero("0.weight"), zero("2.weight"), grad_norms=(0.0, 0.0, 0.0)).speaks is False


def test_a_branch_that_no_gradient_reaches_is_not_judged():
    idle = matrix("expert.weight", 0.0, None, None, weight_rms=0.0)
    assert collapsed(idle, HEAD).speaks is False
    assert collapsed(idle) is None


@pytest.mark.parametrize("settings", [{"fan_in": 0}, {"row_spread": None}])
def test_embeddings_biases_and_layers_of_one_unit_are_not_judged(settings):
    assert collapsed(replace(matrix("a.weight", 0.0, 0.0), **settings)) is None


def test_outputs_that_are_alike_are_no_collapse():
    assert collapsed(matrix("a.weight"), matrix("critics.weight", 0.0, 0.0)).speaks is False


def test_numbers_that_are_not_finite_cannot_be_compared():
    weights = matrix("a.weight", 0.0, 0.0), HEAD
    assert collapsed(*weights, loss=math.nan) is None
    assert collapsed(*weights, total_norm=math.inf) is None
    assert collapsed(*weights, layers=(LayerReading(name="a", kind="Linear", output_finite=False),)) is None
    assert collapsed() is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_rms": 0.5, "weight_mean": -0.5}, "the constant -0.5"),
        ({"weight_rms": 0.5, "weight_mean": 0.1}, "the same row for all"),
        ({"weight_rms": 0.0}, "zeros"),
    ],
)
def test_the_initialisation_is_named_by_what_it_looks_like(settings, words):
    assert f"({words})" in collapsed(matrix("a.weight", 0.0, 0.0, **settings), HEAD).message


def drawn(model, draw):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight)
            nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("value", [0.0, 0.05])
def test_a_training_from_equal_weights_is_told_and_one_from_random_weights_is_not(watched, mlp, activation, value):
    model = drawn(mlp(2, 32, activation), lambda weight: nn.init.constant_(weight, value))
    record = watched(model, torch.optim.SGD(model.parameters(), lr=0.1), 60)
    findings = {one.code: one for one in findings_of(record)}
    assert {"0.weight", "2.weight"} <= set(findings["EG303"].where)
    assert findings["EG303"].when == (0, 59)
    healthy = drawn(mlp(2, 32, activation), nn.init.xavier_uniform_)
    record = watched(healthy, torch.optim.SGD(healthy.parameters(), lr=0.1), 60)
    assert all(not BY_CODE["EG303"].sign(one, record).speaks for one in record.readings if one.weights)


def test_two_units_for_xor_count(watched):
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    data = points, torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    model = drawn(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), lambda one: nn.init.constant_(one, 0.5))
    settings = {"loss": nn.functional.binary_cross_entropy_with_logits, "data": data, "size": 4}
    record = watched(model, torch.optim.Adam(model.parameters(), lr=0.05), 60, **settings)
    assert [one.where for one in findings_of(record) if one.code == "EG303"] == [("0.weight",)]


class Adapted(nn.Module):
    """A frozen layer with a low-rank addition that starts at zero."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, layer.in_features) / 8)
        self.up = nn.Parameter(torch.zeros(layer.out_features, 4))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


class Modulated(nn.Module):
    """A residual block that its condition scales, shifts and gates, all from zero, before a head of zeros."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.last = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(64, 32)
        self.up, self.down, self.modulation = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(64, 96)
        for layer in (self.modulation, self.last, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, x):
        hidden = self.body(x)
        shift, scale, gate = self.modulation(x).chunk(3, -1)
        hidden = hidden + gate * self.down(torch.relu(self.up(hidden * (1 + scale) + shift)))
        return self.head(hidden * (1 + self.last(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Adapted(nn.Linear(64, 32)), nn.ReLU(), Adapted(nn.Linear(32, 10))),
        Modulated,
        lambda: drawn(nn.Sequential(nn.Linear(64, 10)), nn.init.zeros_),
    ],
    ids=["LoRA", "zero modulation and zero head", "logistic regression from zero"],
)
def test_what_starts_at_zero_on_purpose_is_silent(watched, make):
    model = make()
    trained = [one for one in model.parameters() if one.requires_grad]
    record = watched(model, torch.optim.Adam(trained, lr=1e-3), 40)
    assert not any(BY_CODE["EG303"].sign(one, record).speaks for one in record.readings if one.weights)


# --- EG304 ---


def gates(stuck, mean, name="rnn"):
    kind = "LSTM" if len(stuck) == 3 else "GRU"
    layer = LayerReading(name=name, kind=kind, gate_stuck_frac=stuck, gate_mean=mean)
    return BY_CODE["EG304"].sign(Reading(layers=(layer,)), Record())


@pytest.mark.parametrize(
    ("stuck", "mean", "words"),
    [
        ((0.9, 0.0, 0.0), (0.09, 0.5, 0.5), "input gates"),
        ((0.89, 0.0, 0.0), (0.01, 0.5, 0.5), ""),
        ((0.9, 0.0, 0.0), (0.11, 0.5, 0.5), ""),
        ((1.0, 0.0, 0.0), (0.999, 0.5, 0.5), ""),
        ((0.0, 1.0, 0.0), (0.5, 0.001, 0.5), "the memory is lost at every step"),
        ((0.0, 1.0, 0.0), (0.5, 0.999, 0.5), ""),  # open forget gates remember
        ((0.0, 0.0, 0.95), (0.5, 0.5, 0.01), "nothing leaves the memory"),
        ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), "so are the others"),
        ((0.0, 1.0), (0.5, 0.999), "the state stays as it is"),
        ((0.0, 1.0), (0.5, 0.001), ""),
        ((1.0, 0.0), (0.001, 0.5), ""),
        ((1.0, 0.0), (0.999, 0.5), ""),
        ((math.nan,) * 3, (math.nan,) * 3, ""),
    ],
)
def test_gates_are_told_that_are_stuck_on_the_side_that_cuts(stuck, mean, words):
    seen = gates(stuck, mean)
    assert seen.speaks == bool(words)
    assert words in seen.message


def test_layers_whose_gates_were_not_seen_are_not_judged():
    assert gates((), ()) is None
    odd = LayerReading(name="cell", kind="Cell", gate_stuck_frac=(1.0,), gate_mean=(0.0,))
    assert BY_CODE["EG304"].sign(Reading(layers=(odd,)), Record()) is None


class Reader(nn.Module):
    def __init__(self, shut=None):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)
        if shut is not None:
            with torch.no_grad():
                self.rnn.bias_ih_l0[16 * shut : 16 * (shut + 1)] = -12.0

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 8, 8))[0][:, -1])


@pytest.mark.parametrize(("shut", "words"), [(0, "input"), (1, "forget"), (3, "output"), (None, "")])
def test_a_gate_that_a_bias_shuts_is_named(watched, shut, words):
    model = Reader(shut)
    record = watched(model, torch.optim.Adam(model.parameters(), lr=1e-3), 4)
    seen = BY_CODE["EG304"].sign(record.readings[-1], record)
    assert seen.speaks == bool(words)
    assert f"{words} gates of `rnn` (LSTM)" in seen.message if words else seen.message == ""
