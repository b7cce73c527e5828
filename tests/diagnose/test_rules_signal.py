"""The signal through depth and time on readings made by hand and on networks: where a rule speaks, and where not."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.nouns import LayerReading, Reading, Record
from evengrad.probe import probe

BY_CODE = {rule.code: rule for rule in rules.ALL}
ABOVE, BELOW = 1.001, 0.999


def weighted(name, grad, activation=1.0, **settings):
    """A layer whose gradient norm and activation rms are these."""
    settings = {"kind": "Linear", "numel": 4, "weighted": True} | settings
    return LayerReading(name=name, grad_rms=None if grad is None else grad / 2, activation_rms=activation, **settings)


def recurrent(profile, kind="RNN", name="rnn", **settings):
    """A recurrent module with this profile."""
    settings = {"numel": 4, "weighted": True, "grad_rms": 1.0} | settings
    return LayerReading(name=name, kind=kind, time_grad_rms=tuple(profile), **settings)


def calls(grads, kind="RNNCell", name="cell", activations=None):
    """A module that is called once for each gradient."""
    activations = activations or [1.0] * len(grads)
    return tuple(
        weighted(name + (f"#{i}" if i > 1 else ""), grad, size, kind=kind)
        for i, (grad, size) in enumerate(zip(grads, activations, strict=True), start=1)
    )


def functions(name, count):
    return tuple(
        LayerReading(name=f"{name}()" + (f"#{i}" if i > 1 else ""), kind=name, nonlinearity=name)
        for i in range(1, count + 1)
    )


def sign(code, *layers, step=0, first_step=0, **settings):
    reading = Reading(step=step, layers=layers, **settings)
    readings = (reading,) if step == first_step else (Reading(step=first_step), reading)
    return BY_CODE[code].sign(reading, Record(readings=readings, parameters=("a", "b", "c")))


def decaying(count, last_decades):
    """From 1 at the last call down by so many decades to the first one, evenly."""
    return [10.0 ** (-last_decades * (count - 1 - i) / (count - 1)) for i in range(count)]


# --- EG101 ---


def faded(*activations, grads=None):
    grads = grads or [0.0] * (len(activations) - 1) + [1.0]
    return [weighted(str(i), grad, size) for i, (grad, size) in enumerate(zip(grads, activations, strict=True))]


def test_a_forward_that_shrinks_to_exactly_zero_has_vanished_although_no_gradient_can_be_compared():
    seen = sign("EG101", *faded(1.0, 1e-10, 1e-20, 1e-30, 0.0, 0.0, 0.1))
    assert seen.speaks is True
    assert seen.where == ("0", "1", "2", "3", "4")
    assert "shrink by 30.0 decades from `0` (1.0e+00) to `3` (1.0e-30) and are exactly zero behind" in seen.message


@pytest.mark.parametrize(
    "activations",
    [
        (1.0, 1.0, 0.0, 0.0, 1.0),  # branches that start at zero
        (1.0, 1e-2 * ABOVE, 0.0, 0.0, 0.0),
        (1.0, 1e-20, 1e-30, 0.0, 1.0),  # a single silent layer
        (1.0, 1e-20, 1e-30, 1e-38, 1e-40),
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (1e-9, 0.0, 0.0),
    ],
)
def test_silent_layers_behind_a_signal_of_full_size_accuse_nobody(activations):
    assert sign("EG101", *faded(*activations)) is None


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, None), (BELOW, True)])
def test_a_forward_has_vanished_from_three_decades_on(factor, speaks):
    seen = sign("EG101", *faded(1.0, 1e-3 * factor, 0.0, 0.0, 0.0))
    assert (None if seen is None else seen.speaks) == speaks


@pytest.mark.parametrize("std", [1e-4, 1e-3, 1e-2])
def test_tiny_weights_are_seen_whether_or_not_the_forward_underflows(std):
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    record = probe(model, functional.cross_entropy, (torch.rand(32, 64), torch.randint(10, (32,))))
    seen = BY_CODE["EG101"].sign(record.readings[0], record)
    assert seen.speaks is True
    assert seen.where[0] == "0"


# --- EG103 ---


@pytest.mark.parametrize(("kind", "fresh", "later"), [("RNN", "critical", "critical"), ("LSTM", None, "warning")])
def test_gates_are_not_judged_before_they_could_open(kind, fresh, later):
    layer = recurrent([1e-9] * 10 + [1.0], kind)
    first, second = sign("EG103", layer), sign("EG103", layer, step=1)
    assert first.decades == second.decades == pytest.approx(9.0)
    assert first.speaks == (fresh is not None)
    assert second.speaks is True
    assert second.severity == later
    gru = recurrent([1e-19] * 10 + [1.0], "GRU")
    assert sign("EG103", gru).speaks is False
    assert sign("EG103", gru, step=7, first_step=7).speaks is False
    assert sign("EG103", gru, step=7).speaks is True


@pytest.mark.parametrize(("count", "speaks"), [(8, True), (7, None)])
def test_a_cell_in_a_loop_has_a_profile_over_its_calls_from_eight_on(count, speaks):
    seen = sign("EG103", *calls(decaying(count, 9)))
    assert (None if seen is None else seen.speaks) == speaks
    if seen is not None:
        assert seen.where == ("cell",)
        assert "reaches the calls of `cell` falls by 9.0 decades over 8 time steps" in seen.message


@pytest.mark.parametrize(("decades", "speaks"), [(6.89, False), (6.91, True)])
def test_a_cell_speaks_where_a_sum_in_float32_rounds_the_first_calls_away(decades, speaks):
    assert sign("EG103", *calls(decaying(10, decades))).speaks == speaks


def test_gated_cells_are_not_judged_before_they_could_open():
    layers = calls(decaying(20, 15), kind="LSTMCell")
    assert sign("EG103", *layers).speaks is False
    assert sign("EG103", *layers, step=1).severity == "warning"


def test_what_else_is_called_in_the_loop_of_a_cell_says_nothing_of_its_own():
    embed = calls(decaying(20, 15), kind="Linear", name="embed")
    assert sign("EG103", *embed, *calls(decaying(20, 2)), step=1).speaks is False
    assert sign("EG103", *embed, *calls(decaying(20, 15)), step=1).where == ("cell",)
    assert sign("EG103", *embed, step=1).where == ("embed",)


def test_a_cell_of_linear_layers_is_judged_at_first_only_where_no_gate_can_be_in_the_loop():
    loop = calls(decaying(20, 15), kind="Linear")
    assert sign("EG103", *loop, *functions("tanh", 20)).severity == "critical"
    assert sign("EG103", *loop, *functions("tanh", 20), *functions("sigmoid", 20)).speaks is False
    assert sign("EG103", *loop).speaks is False
    assert sign("EG103", *loop, step=1).severity == "warning"


@pytest.mark.parametrize(
    "grads",
    [
        decaying(20, 15)[::-1],  # the last calls get least: not the time of a loop
        [1e-12, 1.0] * 10,  # one network for each of many tokens, half of which nobody looks at
        [1e-12] * 10 + [1.0] * 10,  # a leap, as between two uses
        decaying(20, 6),
    ],
)
def test_layers_that_are_shared_but_not_over_time_are_not_called_so(grads):
    seen = sign("EG103", *calls(grads, kind="Linear"), *functions("tanh", 20))
    assert seen is None or seen.speaks is False


def test_a_module_that_is_called_with_one_time_step_at_a_time_is_judged_over_its_calls():
    steps = [recurrent([grad], name="rnn" + (f"#{i}" if i else "")) for i, grad in enumerate(decaying(12, 9))]
    assert sign("EG103", *steps).where == ("rnn",)
    assert sign("EG103", *steps[:7]) is None


def test_twin_sequences_are_judged_each_for_itself():
    twins = [recurrent([0.5] * 10), recurrent([1e-9] * 9 + [1e-1], name="rnn#2")]
    assert sign("EG103", *twins).where == ("rnn#2",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_profile_with_a_number_that_is_not_finite_is_not_judged(value):
    assert sign("EG103", recurrent([value] + [1e-9] * 9 + [1.0])) is None


# --- EG104 ---


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
@pytest.mark.parametrize("make", [recurrent, calls], ids=["module", "cell"])
def test_exploding_through_time_speaks_from_three_decades_on(make, factor, speaks):
    profile = [1e3 * factor, *(10.0 ** (k / 2) for k in range(5, 0, -1)), 1.0, 1.0, 1.0]
    layers = make(profile)
    seen = sign("EG104", *(layers if isinstance(layers, tuple) else (layers,)))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(3.0, abs=1e-3)
    assert ("grows by 3.0 decades on its way back to the early time steps" in seen.message) == speaks


def test_growth_that_is_one_leap_or_goes_the_other_way_is_not_exploding():
    leap = [1.0] * 5 + [1e5] + [1.0] * 6
    assert sign("EG104", recurrent(leap)).decades == 0.0
    read_out = [1e4, 2e4, 1e4] + [1.0] * 10  # attention reads the first steps
    assert sign("EG104", recurrent(read_out)).speaks is False
    assert sign("EG104", recurrent(decaying(20, 9))).decades == 0.0
    assert sign("EG104", recurrent(decaying(7, 9)[::-1])) is None


def test_states_that_grow_over_the_steps_are_told_too():
    seen = sign("EG104", *calls([1.0] * 12, activations=[10.0 ** (k / 2) for k in range(12)]))
    assert seen.speaks is True
    assert "the state of `cell` grows by 4.5 decades over the time steps" in seen.message


@pytest.mark.parametrize(("decades", "speaks"), [(6.8, False), (7.0, True)])
def test_a_shared_layer_of_unknown_kind_explodes_through_time_only_beyond_the_resolution_of_float32(decades, speaks):
    profile = decaying(20, decades * 19 / 17)[::-1]  # growth is measured from the last three on
    assert sign("EG104", *calls(profile, kind="Linear")).speaks == speaks


def test_a_recurrent_module_that_overflows_by_itself_is_named():
    bad = {"output_finite": False, "grad_rms": None, "weight_norm": 9.0}
    after = weighted("head", None, output_finite=False, input_finite=False)
    seen = sign("EG104", weighted("embed", None), recurrent((), **bad), after)
    assert seen.where == ("rnn",)
    assert "finite weights and a finite input, and overflows forwards" in seen.message
    assert sign("EG104", recurrent((), **bad | {"weight_norm": float("nan")}), after) is None
    assert sign("EG104", recurrent((), **bad | {"weight_norm": None}), after) is None
    assert sign("EG104", recurrent((), **bad | {"input_finite": False}), after) is None
    assert sign("EG104", weighted("embed", None, output_finite=False), recurrent((), **bad)) is None


def test_a_gradient_that_overflows_on_its_way_through_time_is_told():
    seen = sign("EG104", recurrent([float("inf")] * 5 + [1e30, 1e10, 1.0]), weighted("head", 1.0))
    assert seen.where == ("rnn",)
    assert "on its way back through time" in seen.message
    assert sign("EG104", recurrent([float("nan")] * 9), weighted("head", 1.0, grad_finite=False)) is None


class Loop(nn.Module):
    """A plain recurrent cell of linear layers in a loop."""

    def __init__(self, gain, width=32):
        super().__init__()
        self.inward, self.onward, self.head = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 1)
        with torch.no_grad():
            self.onward.weight.copy_(gain * nn.init.orthogonal_(torch.empty(width, width)))

    def forward(self, x):
        state = x.new_zeros(len(x), self.onward.in_features)
        for step in x.unbind(1):
            state = torch.tanh(self.inward(step) + self.onward(state))
        return self.head(state)[:, 0]


class Unrolled(nn.Module):
    """The same with a cell of torch."""

    def __init__(self, gain, width=32, nonlinearity="tanh"):
        super().__init__()
        self.cell, self.head = nn.RNNCell(2, width, nonlinearity=nonlinearity), nn.Linear(width, 1)
        with torch.no_grad():
            self.cell.weight_hh.copy_(gain * nn.init.orthogonal_(torch.empty(width, width)))

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)[:, 0]


def told(model, steps=30):
    batch = torch.rand(32, steps, 2), torch.rand(32)
    return {finding.code: finding for finding in findings_of(probe(model, functional.mse_loss, batch))}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("make", "name"), [(Loop, "onward"), (Unrolled, "cell")])
def test_real_cells_in_a_loop_vanish_with_small_weights_and_are_silent_with_orthogonal_ones(make, name, seed):
    torch.manual_seed(seed)
    assert name in told(make(0.5))["EG103"].where
    assert not {"EG101", "EG102", "EG103", "EG104"} & set(told(make(1.0)))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_real_cell_explodes_with_large_weights(seed):
    torch.manual_seed(seed)
    found = told(Unrolled(2.0, nonlinearity="relu"), steps=40)
    assert found["EG104"].where == ("cell",)
    assert found["EG104"].family == "exploding-time"


def test_a_healthy_recurrent_network_of_five_hundred_steps_does_not_explode():
    torch.manual_seed(0)
    record = probe(Unrolled(1.0), functional.mse_loss, (torch.rand(4, 500, 2), torch.rand(4)))
    assert BY_CODE["EG104"].sign(record.readings[0], record).decades < 1.0


# --- EG105 ---


def overflow(*sizes, **settings):
    bad = weighted("bad", None, sizes[-1], activation_absmax=sizes[-1], output_finite=False, **settings)
    return [*(weighted(str(i), None, size) for i, size in enumerate(sizes[:-1])), bad]


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_growth_up_to_an_overflow_is_told_from_three_decades_on(factor, speaks):
    seen = sign("EG105", *overflow(1.0, 30.0, 1e3 * factor))
    assert seen.speaks == speaks
    assert (seen.where == ("0", "1", "bad")) == speaks
    assert ("grow by 3.0 decades from `0` (1.0e+00) to `bad` and overflow there" in seen.message) == speaks


def test_an_overflow_without_growth_or_by_broken_weights_is_no_drift():
    assert sign("EG105", *overflow(1.0, 1.0, 1.0)).decades == 0.0  # a logarithm of zero
    assert sign("EG105", *overflow(1.0, 30.0, 1e6, weight_norm=float("nan"))) is None
    assert sign("EG105", *overflow(1.0, 30.0, 1e6, input_finite=False)) is None
    assert sign("EG105", *overflow(1.0, 1e6)) is None


def test_what_the_weighted_layers_show_by_themselves_is_left_to_eg102():
    sizes = [10.0**k for k in range(8)]
    layers = [weighted(str(i), 1.0, size) for i, size in enumerate(sizes)]
    assert sign("EG102", *layers).speaks is True
    assert sign("EG105", *layers) is None
    plain = [replace(layer, weighted=False) for layer in layers]
    assert sign("EG102", *plain) is None
    assert sign("EG105", *plain).speaks is True
    assert sign("EG105", *[replace(layer, activation_rms=1.0) for layer in plain]).decades == 0.0
    assert sign("EG105", *overflow(1.0, 1e3, 1e6), first_step=0).speaks is True
    record = Record(readings=(Reading(layers=tuple(layers)), Reading(step=1, layers=tuple(overflow(1.0, 1e3, 1e6)))))
    assert BY_CODE["EG105"].sign(record.readings[1], record) is None


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_growth_outside_of_the_weighted_layers_is_told_from_three_decades_on(factor, speaks):
    sizes = [1.0, 1.0, 40.0, 1e3 * factor, 1.0, 1.0]
    plain = [replace(weighted(str(i), 1.0, size), weighted=False) for i, size in enumerate(sizes)]
    seen = sign("EG105", *plain)
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(3.0, abs=1e-3)


def test_growth_before_an_overflow_stands_at_the_root_of_the_story():
    class Exp(nn.Module):
        def forward(self, x):
            return torch.exp(x)

    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(5, 5), Exp())]
    for layer in layers[::2]:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    record = probe(
        nn.Sequential(*layers), functional.mse_loss, (torch.ones(8, 5), torch.ones(8, 5)), allow_broken_loss=True
    )
    findings = findings_of(record)
    assert findings[0].family == "exploding-depth"
    assert next(one for one in findings if one.code == "EG201").follows
