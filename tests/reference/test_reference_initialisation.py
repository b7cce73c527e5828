"""First weights: their spread, their bounds and their orthogonality, by theory and by torch."""

import math

import numpy as np
import pytest
import torch

from evengrad import reference

SHAPES = [(200, 300), (300, 200), (40, 30, 5, 5)]
GAINS = [("identity", "linear"), ("sigmoid", "sigmoid"), ("tanh", "tanh"), ("relu", "relu")]


def deviations_apart(weight, std):
    """Measure how far the mean square is from the theory's, in the standard errors of a normal sample."""
    return abs(np.mean(weight**2) / std**2 - 1) * math.sqrt(weight.size / 2)


@pytest.mark.parametrize(("ours", "theirs"), GAINS)
def test_the_gain_is_that_of_torch(ours, theirs):
    assert reference.activation_gain(ours) == pytest.approx(torch.nn.init.calculate_gain(theirs), rel=1e-15)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 2.0])
def test_the_gain_of_a_leaky_relu_is_that_of_torch(slope):
    theirs = torch.nn.init.calculate_gain("leaky_relu", slope)
    assert reference.activation_gain("leaky_relu", negative_slope=slope) == pytest.approx(theirs, rel=1e-15)


def torch_bound(init, shape, **settings):
    """Read the bound of a uniform initialiser of torch off a large draw: never above, and nearly reached."""
    torch.manual_seed(0)
    return float(init(torch.empty(shape, dtype=torch.float64), **settings).abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gain", [1.0, 5 / 3])
def test_xavier_has_the_spread_and_the_bound_of_torch(rng, shape, gain):
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    std = gain * math.sqrt(2 / (fan_in + fan_out))
    assert reference.fans(shape) == (fan_in, fan_out)
    assert reference.xavier_std(shape, gain=gain) == pytest.approx(std, rel=1e-14)
    normal = reference.xavier_normal(shape, rng, gain=gain)
    uniform = reference.xavier_uniform(shape, rng, gain=gain)
    bound = torch_bound(torch.nn.init.xavier_uniform_, shape, gain=gain)
    assert normal.shape == uniform.shape == shape
    assert deviations_apart(normal, std) < 5
    assert deviations_apart(uniform, std) < 5
    assert np.max(np.abs(uniform)) == pytest.approx(bound, rel=1e-3)
    assert np.max(np.abs(normal)) > 1.5 * bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.4), ("tanh", 0.0)])
def test_he_has_the_spread_and_the_bound_of_torch(rng, shape, mode, activation, slope):
    settings = {"activation": activation, "negative_slope": slope, "mode": mode}
    fan = dict(zip(("fan_in", "fan_out"), reference.fans(shape), strict=True))[mode]
    std = torch.nn.init.calculate_gain(activation, slope) / math.sqrt(fan)
    assert reference.he_std(shape, **settings) == pytest.approx(std, rel=1e-14)
    normal = reference.he_normal(shape, rng, **settings)
    uniform = reference.he_uniform(shape, rng, **settings)
    bound = torch_bound(torch.nn.init.kaiming_uniform_, shape, a=slope, mode=mode, nonlinearity=activation)
    assert deviations_apart(normal, std) < 5
    assert deviations_apart(uniform, std) < 5
    assert np.max(np.abs(uniform)) == pytest.approx(bound, rel=1e-3)
    assert np.max(np.abs(normal)) > 1.5 * bound


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_he_keeps_the_size_of_a_signal_through_twenty_layers(rng, activation):
    layers = [
        reference.Dense(
            weight=reference.he_normal((400, 400), rng, activation=activation),
            bias=np.zeros(400),
            activation=activation,
        )
        for _ in range(20)
    ]
    inputs = rng.normal(size=(30, 400))
    outputs = reference.forward(layers, inputs).preactivations[-1]
    gain = reference.activation_gain(activation)
    assert 0.4 < np.mean(outputs**2) / gain**2 < 2.5


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (4, 3, 2, 2), (20, 3, 2, 2), (1, 5)], ids=str)
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_an_orthogonal_weight_is_orthogonal_on_its_shorter_side(rng, shape, gain):
    weight = reference.orthogonal(shape, rng, gain=gain).reshape(shape[0], -1)
    theirs = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), gain=gain).numpy()
    product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-12)
    flat = theirs.reshape(shape[0], -1)
    np.testing.assert_allclose(np.sum(weight**2), np.sum(flat**2), rtol=1e-12)


def test_orthogonal_weights_are_drawn_evenly(rng):
    determinants = [np.linalg.det(reference.orthogonal((3, 3), rng)) for _ in range(400)]
    traces = [np.trace(reference.orthogonal((3, 3), rng)) for _ in range(2000)]
    assert 0.4 < np.mean(np.array(determinants) > 0) < 0.6
    assert abs(np.mean(traces)) < 0.1  # the trace has mean 0 and variance 1 over the orthogonal group
    assert np.var(traces) == pytest.approx(1.0, abs=0.15)


def test_the_same_seed_draws_the_same_weights():
    for draw in (reference.xavier_normal, reference.he_uniform, reference.orthogonal):
        first, second = (draw((4, 3), np.random.default_rng(7)) for _ in range(2))
        assert np.array_equal(first, second)
        assert first.dtype == np.float64


def test_a_constant_is_the_same_everywhere_and_may_be_empty():
    assert reference.constant((2, 3), value=0.25).tolist() == [[0.25] * 3] * 2
    assert reference.constant((0, 3), value=1).shape == (0, 3)
    assert reference.constant((), value=2).dtype == np.float64


def test_units_with_constant_weights_get_the_same_gradient(rng):
    layers = [
        reference.Dense(weight=reference.constant((3, 2), value=0.3), bias=np.zeros(3), activation="tanh"),
        reference.Dense(weight=reference.constant((1, 3), value=0.3), bias=np.zeros(1)),
    ]
    passed = reference.forward(layers, rng.normal(size=(5, 2)))
    gradient = reference.backward(layers, passed, np.ones((5, 1))).weights[0]
    assert np.array_equal(gradient[0], gradient[1])
    assert np.array_equal(gradient[0], gradient[2])


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("name", ["xavier_normal", "xavier_uniform", "he_normal", "he_uniform", "orthogonal"])
def test_a_shape_without_fans_is_refused(rng, name, shape):
    with pytest.raises(ValueError, match=r"shape: got \(.*\), want at least two axes, none of them empty"):
        getattr(reference, name)(shape, rng)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("xavier_normal", {"gain": 0.0}, "gain: got 0.0, want a positive number"),
        ("xavier_uniform", {"gain": -1.0}, "gain: got -1.0, want a positive number"),
        ("orthogonal", {"gain": math.nan}, "gain: got nan, want a positive number"),
        ("he_normal", {"mode": "fan_avg"}, "mode: got 'fan_avg', want fan_in or fan_out"),
        ("he_uniform", {"activation": "gelu"}, "activation: got 'gelu', want one of"),
        ("he_normal", {"negative_slope": -0.1}, "negative_slope: got -0.1, want"),
    ],
)
def test_a_setting_out_of_range_is_refused(rng, name, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(reference, name)((3, 2), rng, **settings)
