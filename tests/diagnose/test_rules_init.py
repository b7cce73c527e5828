"""Rules of initialisation: weights too large, too small, one layer out of line; by hand and on real networks."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from evengrad.diagnose import rules
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, TensorReading

BY_CODE = {rule.code: rule for rule in rules.ALL}
CODES = ("EG401", "EG402", "EG403")
ABOVE, BELOW = 1.01, 0.99


def network(gains, *, nonlinearity=None, kind="Linear", saturated=None, between=(), **settings):
    """A chain whose signal does what its gains say, forwards and backwards, in layers of 16 inputs."""
    keeps = math.sqrt(0.5) if nonlinearity == "relu" else 1.0
    layers, weights, size = [], [], 1.0
    backward = [math.prod(one * keeps for one in gains[place + 1 :]) for place in range(len(gains))]
    for place, gain in enumerate(gains):
        size *= gain
        name = f"{place}"
        layers.append(LayerReading(name=name, kind=kind, weighted=True, activation_rms=size, grad_rms=backward[place]))
        layers[-1] = replace(layers[-1], numel=1)
        layers += [LayerReading(name=f"{between_kind}{place}", kind=between_kind) for between_kind in between]
        if nonlinearity is not None:
            layers.append(
                LayerReading(name=f"act{place}", kind="Act", nonlinearity=nonlinearity, saturated_frac=saturated)
            )
        size *= keeps
        weights.append(ParameterReading(name=f"{name}.weight", numel=256, fan_in=16, weight_rms=gain / 4))
    ends = Ends(inputs=(TensorReading(name="input", std=1.0),))
    return Reading(layers=tuple(layers), weights=tuple(weights), ends=ends, **settings)


def sign(code, reading, first=None):
    return BY_CODE[code].sign(reading, Record(readings=(first or reading,)))


# --- EG401, EG402 ---


@pytest.mark.parametrize(("factor", "speaks"), [(BELOW, False), (ABOVE, True)])
def test_weights_are_too_large_where_all_together_grow_the_signal_a_hundredfold(factor, speaks):
    seen = sign("EG401", network([100 ** (1 / 4) * factor] * 4))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(2.0, abs=0.02)
    assert seen.where == (("0", "1", "2", "3") if speaks else ())


@pytest.mark.parametrize(("factor", "speaks"), [(ABOVE, False), (BELOW, True)])
def test_weights_are_too_small_where_all_together_leave_a_hundredth_of_the_signal(factor, speaks):
    seen = sign("EG402", network([100 ** (-1 / 4) * factor] * 4))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(2.0, abs=0.02)
    assert seen.where == (("0", "1", "2", "3") if speaks else ())


def test_a_rectifier_wants_the_gain_of_he():
    depth = 40
    for gain, code in ((1.42, None), (1.0, "EG402"), (2.0, "EG401")):
        reading = network([gain] * depth, nonlinearity="relu")
        assert [one for one in CODES if sign(one, reading).speaks] == [code] * bool(code)
    told = sign("EG402", network([1.0] * depth, nonlinearity="relu")).message
    assert "have a gain of 1 (median), where 1.4 keeps the signal" in told


def test_what_biases_hide_from_the_activations_the_gradient_shows():
    reading = network([0.2] * 6)
    held = tuple(replace(layer, activation_rms=0.3) for layer in reading.layers)
    assert sign("EG402", replace(reading, layers=held)).speaks is True
    flat = tuple(replace(layer, grad_rms=1.0) for layer in held)
    assert sign("EG402", replace(reading, layers=flat)).speaks is False


def test_weights_that_the_signal_does_not_mind_are_silent():
    for code, gain in (("EG401", 10.0), ("EG402", 0.1)):
        reading = network([gain] * 6)
        steady = tuple(replace(layer, activation_rms=1.0, grad_rms=1.0) for layer in reading.layers)
        assert sign(code, reading).speaks is True
        assert sign(code, replace(reading, layers=steady)).speaks is False


@pytest.mark.parametrize("kind", ["BatchNorm1d", "LayerNorm", "LlamaRMSNorm"])
def test_a_normalisation_takes_the_scale_back(kind):
    assert sign("EG401", network([10.0] * 6, between=(kind,))).speaks is False
    assert sign("EG402", network([0.1] * 6, between=(kind,))).speaks is False


@pytest.mark.parametrize("code", CODES)
def test_weights_that_have_made_a_step_are_not_judged(code):
    reading = network([100.0, *[1.0] * 5]) if code == "EG403" else network([10.0 if code == "EG401" else 0.1] * 6)
    assert sign(code, reading).speaks is True
    assert sign(code, replace(reading, step=1), first=Reading()) is None
    resumed = replace(reading, step=500)
    assert sign(code, resumed, first=resumed) is None
    assert sign(code, replace(reading, weights=())) is None
    assert sign(code, replace(reading, layers=())) is None


def test_one_layer_alone_is_not_the_depth():
    assert sign("EG401", network([1e4, 1.0, 1.0, 1.0])).speaks is False
    assert sign("EG402", network([1e-4, 1.0, 1.0, 1.0])).speaks is False
    assert sign("EG402", network([0.5, 0.5, 0.01, 0.5, 0.5, 0.5])).speaks is False
    assert sign("EG401", network([2.0, 2.0, 100.0, 2.0, 2.0, 2.0])).speaks is False


def test_an_overflow_counts_as_growth():
    reading = network([30.0] * 4)
    layers = (*reading.layers[:-1], replace(reading.layers[-1], output_finite=False, activation_rms=0.0))
    assert sign("EG401", replace(reading, layers=layers)).speaks is True


@pytest.mark.parametrize(
    ("gain", "saturated", "speaks"), [(3.3, 0.5, True), (3.1, 0.5, False), (3.3, 0.49, False), (1.0, 1.0, False)]
)
def test_weights_are_too_large_where_they_saturate_what_comes_behind(gain, saturated, speaks):
    reading = network([gain] * 4, nonlinearity="tanh", saturated=saturated)
    bounded = tuple(replace(layer, activation_rms=1.0) for layer in reading.layers)
    assert sign("EG401", replace(reading, layers=bounded)).speaks == speaks


def test_recurrent_and_parametrized_weights_are_not_depth():
    reading = network([10.0] * 6)
    made = [
        replace(one, name=f"{place}.parametrizations.weight.original1") for place, one in enumerate(reading.weights)
    ]
    assert sign("EG401", replace(reading, weights=tuple(made))) is None
    assert sign("EG401", network([10.0] * 6, kind="LSTM")) is None


# --- EG403 ---


@pytest.mark.parametrize(("decades", "speaks"), [(1.51, True), (1.49, False), (-1.51, True), (-1.49, False)])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_layer_is_out_of_line_from_one_and_a_half_decades_on(decades, speaks, place):
    gains = [1.0] * 6
    gains[place] = 10**decades
    seen = sign("EG403", network(gains))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(abs(decades))
    assert seen.where == ((str(place),) if speaks else ())


def test_a_last_layer_may_be_small_but_not_large():
    assert sign("EG403", network([1.0] * 5 + [0.01])).speaks is False
    assert sign("EG403", network([1.0] * 5 + [100.0])).where == ("5",)


def test_what_the_signal_takes_back_is_not_told():
    reading = network([1.0, 1.0, 100.0, 1.0, 1.0, 1.0])
    back = [1.0, 1.0, 100.0, 1.0, 1.0, 1.0]
    layers = tuple(
        replace(layer, activation_rms=size, grad_rms=1.0) for layer, size in zip(reading.layers, back, strict=True)
    )
    assert sign("EG403", replace(reading, layers=layers)).speaks is False
    normalised = network([1.0, 1.0, 100.0, 1.0, 1.0, 1.0], between=("LayerNorm",))
    assert sign("EG403", normalised).speaks is False


def test_a_small_branch_beside_a_stream_is_not_told():
    reading = network([1.0, 1.0, 1.0, 0.01, 1.0, 1.0])
    sizes, gradients = [1.0, 1.0, 1.0, 0.01, 1.0, 1.0], [1.0, 1.0, 0.01, 1.0, 1.0, 1.0]
    layers = tuple(
        replace(layer, activation_rms=size, grad_rms=gradient)
        for layer, size, gradient in zip(reading.layers, sizes, gradients, strict=True)
    )
    assert sign("EG403", reading).speaks is True
    assert sign("EG403", replace(reading, layers=layers)).speaks is False


def test_a_large_layer_before_a_bounded_non_linearity_shows_by_saturation():
    reading = network([1.0, 1.0, 100.0, 1.0, 1.0], nonlinearity="tanh", saturated=0.0)
    bounded = tuple(replace(layer, activation_rms=1.0, grad_rms=1.0) for layer in reading.layers)
    assert sign("EG403", replace(reading, layers=bounded)).speaks is False
    saturated = tuple(replace(layer, saturated_frac=0.6) if layer.name == "act2" else layer for layer in bounded)
    assert sign("EG403", replace(reading, layers=saturated)).where == ("2",)


def test_nothing_is_out_of_line_where_there_is_none():
    assert sign("EG403", network([100.0, 1.0, 1.0])) is None
    assert sign("EG403", network([100.0, 1.0, 1.0, 20.0, 1.0, 0.05])).speaks is False


# --- real networks ---


def chain(depth, activation, draw, width=64):
    layers, wide = [], 64
    for _ in range(depth):
        layers += [nn.Linear(wide, width), activation()]
        wide = width
    model = nn.Sequential(*layers, nn.Linear(wide, 10))
    for module in model:
        if isinstance(module, nn.Linear) and draw is not None:
            draw(module.weight)
            nn.init.zeros_(module.bias)
    return model


def normal(std):
    return lambda weight: nn.init.normal_(weight, std=std)


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def spoiled(factor):
    model = chain(6, nn.ReLU, he)
    with torch.no_grad():
        model[4].weight.mul_(factor)
    return model


@pytest.mark.parametrize(
    ("make", "codes"),
    [
        (lambda: chain(20, nn.ReLU, normal(0.4)), ["EG401"]),
        (lambda: chain(10, nn.Tanh, normal(1.0)), ["EG401"]),
        (lambda: chain(20, nn.ReLU, normal(0.01)), ["EG402"]),
        (lambda: chain(17, nn.ReLU, lambda weight: nn.init.uniform_(weight, -0.05, 0.05)), ["EG402"]),
        (lambda: chain(20, nn.ReLU, None), ["EG402"]),  # torch's own draw, too small for that depth
        (lambda: spoiled(100.0), ["EG403"]),
        (lambda: spoiled(0.01), ["EG403"]),
        (lambda: chain(20, nn.ReLU, he), []),
        (lambda: chain(20, nn.Tanh, nn.init.xavier_normal_), []),
        (lambda: chain(20, nn.Tanh, nn.init.orthogonal_), []),
        (lambda: chain(3, nn.ReLU, None), []),
        (lambda: chain(3, nn.GELU, normal(0.1)), []),
        (lambda: chain(12, nn.Sigmoid, he), []),  # the non-linearity loses the signal, not the weights
    ],
)
def test_weights_are_told_from_networks_as_they_are_drawn(watched, make, codes):
    model = make()
    record = watched(model, torch.optim.SGD(model.parameters(), lr=0.0), 1)
    signs = {code: BY_CODE[code].sign(record.readings[0], record) for code in CODES}
    assert [code for code, seen in signs.items() if seen is not None and seen.speaks] == codes
    if codes == ["EG403"]:
        assert signs["EG403"].where == ("4",)


class Transformer(nn.Module):
    """As published: N(0, 0.02), residual branches scaled down, everything behind a normalisation."""

    def __init__(self, *, final):
        super().__init__()
        self.inputs, self.last, self.head = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(8))
        self.up = nn.ModuleList(nn.Linear(64, 128) for _ in range(8))
        self.down = nn.ModuleList(nn.Linear(128, 64) for _ in range(8))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=final)

    def forward(self, x):
        x = self.inputs(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(self.last(x))


@pytest.mark.parametrize("final", [0.02, 1e-4, 0.0])
def test_a_normalised_residual_network_is_silent_whatever_its_head_starts_at(watched, final):
    model = Transformer(final=final)
    record = watched(model, torch.optim.SGD(model.parameters(), lr=0.0), 1)
    signs = [BY_CODE[code].sign(record.readings[0], record) for code in CODES]
    assert not any(seen is not None and seen.speaks for seen in signs)
