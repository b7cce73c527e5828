"""Each optimizer of the reference walks the path of torch's."""

import numpy as np
import pytest
import torch

from evengrad import reference

STEPS = 40

CASES = [
    ("gradient_descent", torch.optim.SGD, {}, {}),
    ("momentum", torch.optim.SGD, {"momentum": 0.9}, {}),
    ("momentum", torch.optim.SGD, {"momentum": 0.5, "dampening": 0.3}, {}),
    ("momentum", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {}),
    ("adagrad", torch.optim.Adagrad, {}, {}),
    ("adagrad", torch.optim.Adagrad, {"lr_decay": 0.1, "eps": 1e-3}, {}),
    ("rmsprop", torch.optim.RMSprop, {}, {}),
    ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}, {}),
    ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9}, {}),
    ("rmsprop", torch.optim.RMSprop, {"centered": True}, {}),
    ("rmsprop", torch.optim.RMSprop, {"centered": True, "momentum": 0.8}, {}),
    ("adam", torch.optim.Adam, {}, {}),
    ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-3}, {}),
    ("adam", torch.optim.Adam, {"betas": (0.0, 0.9), "amsgrad": True}, {}),
    ("adamw", torch.optim.AdamW, {}, {}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.3, "amsgrad": True, "betas": (0.7, 0.9)}, {}),
]
PENALIZED = [(name, theirs, settings, {"weight_decay": 0.2}) for name, theirs, settings, _ in CASES if name != "adamw"]
NAMES = ["gradient_descent", "momentum", "adagrad", "rmsprop", "adam", "adamw"]


def rates(step: int) -> float:
    return 0.05 / (1 + 0.1 * step)  # a schedule: the conventions differ where the rate changes


def paths(case, gradients):
    """Walk both: the weights and what both remember, after every step."""
    name, kind, settings, penalty = case
    start = np.linspace(-1.0, 1.0, gradients[0].size).reshape(gradients[0].shape)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([parameter], lr=1.0, foreach=False, **settings, **penalty)
    weights, state = start.copy(), {}
    for step, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = rates(step)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        if penalty:
            gradient = reference.add_weight_decay(weights, gradient, **penalty)  # noqa: PLW2901
        weights, state = getattr(reference, name)(weights, gradient, state, lr=rates(step), **settings)
        remembered = {key: np.asarray(value) for key, value in optimizer.state[parameter].items() if value is not None}
        yield weights, state, parameter.detach().numpy(), remembered


@pytest.mark.parametrize("case", [*CASES, *PENALIZED], ids=lambda case: "-".join(map(str, (case[0], case[2], case[3]))))
@pytest.mark.parametrize("shape", [(4, 3), (5,), ()], ids=str)
def test_the_path_is_that_of_torch_over_forty_steps(rng, case, shape):
    gradients = [np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2)) for _ in range(STEPS)]
    for weights, state, theirs, remembered in paths(case, gradients):
        np.testing.assert_allclose(weights, theirs, rtol=1e-10, atol=1e-12)
        for name, value in state.items():
            key = "max_exp_avg_sqs" if name not in remembered and name == "max_exp_avg_sq" else name
            np.testing.assert_allclose(value, remembered[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_a_gradient_of_zero_leaves_the_weights_where_torch_leaves_them(case):
    for weights, _, theirs, _ in paths(case, [np.zeros(3)] * 5):
        np.testing.assert_allclose(weights, theirs, rtol=1e-12)
        assert np.all(np.isfinite(weights))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_where_it_goes_in_torch(case, bad):
    gradients = [np.array([1.0, 2.0]), np.array([bad, 2.0]), np.array([1.0, 2.0])]
    with np.errstate(invalid="ignore"):
        for weights, _, theirs, _ in paths(case, gradients):
            np.testing.assert_allclose(weights, theirs, rtol=1e-10, equal_nan=True)
    assert not np.isfinite(weights[0])
    assert np.isfinite(weights[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_empty_weights_stay_empty(case):
    for weights, _, theirs, _ in paths(case, [np.zeros((0, 3))] * 2):
        assert weights.shape == theirs.shape == (0, 3)


@pytest.mark.parametrize(("gradient", "alpha"), [(0.1, 0.99), (0.7, 0.5)])
def test_a_centered_variance_that_rounding_made_negative_is_no_nan(gradient, alpha):
    weights, state = np.array([0.0]), {}
    negative = 0
    for _ in range(4000):
        weights, state = reference.rmsprop(weights, [gradient], state, lr=0.01, alpha=alpha, centered=True)
        negative += bool(state["square_avg"][0] - state["grad_avg"][0] ** 2 < 0)
    assert negative > 0
    assert np.isfinite(weights[0])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_given_is_changed_and_nothing_returned_is_shared(name):
    step = getattr(reference, name)
    weights, gradient = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    _, state = step(weights, gradient, {}, lr=0.1)
    kept = {key: value.copy() for key, value in state.items()}
    moved, _ = step(weights, gradient, state, lr=0.1)
    gradient[:] = 7.0
    assert weights.tolist() == [1.0, 2.0]
    assert not np.shares_memory(moved, weights)
    assert all(np.array_equal(state[key], kept[key]) for key in kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"gradient: got shape \(1,\), want \(3,\)"):
        getattr(reference, name)(np.ones(3), np.ones(1), {}, lr=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_optimizer_is_refused(name):
    with pytest.raises(ValueError, match=r"state: got other, want .*or nothing yet"):
        getattr(reference, name)(np.ones(3), np.ones(3), {"other": np.ones(3)}, lr=0.1)


def test_a_state_of_other_settings_or_weights_is_refused():
    _, state = reference.adam(np.ones(3), np.ones(3), {}, lr=0.1)
    with pytest.raises(ValueError, match=r"state: got exp_avg, exp_avg_sq, step, want .*max_exp_avg_sq"):
        reference.adam(np.ones(3), np.ones(3), state, lr=0.1, amsgrad=True)
    with pytest.raises(ValueError, match=r"state\['exp_avg'\]: got shape \(3,\), want \(2,\)"):
        reference.adam(np.ones(2), np.ones(2), state, lr=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [-1.0, np.nan, np.inf, "0.1", True])
def test_a_learning_rate_that_is_none_is_refused(name, lr):
    with pytest.raises(ValueError, match=r"lr: got .*, want a finite number of 0 or more"):
        getattr(reference, name)(np.ones(3), np.ones(3), {}, lr=lr)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("momentum", {"momentum": 1.0}, r"momentum: got 1.0, want a number in \[0, 1\)"),
        ("momentum", {"momentum": 0.0}, "momentum: got 0.0, want a positive number"),
        ("momentum", {"dampening": -0.1}, r"dampening: got -0.1, want a number in \[0, 1\)"),
        ("momentum", {"dampening": 0.1, "nesterov": True}, "dampening: got 0.1, want 0 with nesterov=True"),
        ("adagrad", {"lr_decay": -1.0}, "lr_decay: got -1.0, want"),
        ("adagrad", {"eps": -1.0}, "eps: got -1.0, want"),
        ("rmsprop", {"alpha": 1.0}, "alpha: got 1.0, want"),
        ("rmsprop", {"eps": np.nan}, "eps: got nan, want"),
        ("rmsprop", {"momentum": 2.0}, "momentum: got 2.0, want"),
        ("adam", {"betas": (1.0, 0.9)}, r"betas\[0\]: got 1.0, want"),
        ("adam", {"betas": (0.9, -0.1)}, r"betas\[1\]: got -0.1, want"),
        ("adam", {"eps": -1.0}, "eps: got -1.0, want"),
        ("adamw", {"weight_decay": -1.0}, "weight_decay: got -1.0, want"),
    ],
)
def test_a_setting_out_of_range_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(reference, name)(np.ones(3), np.ones(3), {}, lr=0.1, **settings)


def test_a_penalty_below_zero_and_complex_weights_are_refused():
    with pytest.raises(ValueError, match=r"weight_decay: got -0\.1, want"):
        reference.add_weight_decay([1.0], [1.0], weight_decay=-0.1)
    with pytest.raises(ValueError, match="weights: got complex128, want real numbers"):
        reference.adam([1j], [1.0], {}, lr=0.1)


def test_half_precision_is_computed_in_float64():
    weights, state = reference.adam(np.ones(2, np.float16), np.full(2, 6e4, np.float16), {}, lr=0.1)
    assert weights.dtype == np.float64
    assert state["exp_avg_sq"][0] == pytest.approx(0.001 * 6e4**2)  # the square is no float16
