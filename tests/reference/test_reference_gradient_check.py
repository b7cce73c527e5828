"""The gradient check: it lets right gradients through, and says where a wrong one is."""

import numpy as np
import pytest

from evengrad import reference
from evengrad.reference import Dense


def value(x):
    return float(np.sum(np.sin(x) * np.exp(0.3 * x)))


def slope(x):
    return np.exp(0.3 * x) * (np.cos(x) + 0.3 * np.sin(x))


@pytest.mark.parametrize("shape", [(4, 3), (5,), ()], ids=str)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0])
def test_a_right_gradient_has_a_small_error(rng, shape, scale):
    x = np.asarray(scale * rng.normal(size=shape))
    assert reference.check_gradient(value, x, slope(x)).error < 1e-7
    np.testing.assert_allclose(reference.central_differences(value, x), slope(x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("factor", "error"), [(2.0, 0.5), (-1.0, 2.0), (0.0, 1.0), (1.001, 0.001 / 1.001)])
def test_one_wrong_element_is_found_with_its_place_and_both_numbers(rng, factor, error):
    x = rng.normal(size=(4, 3))
    wrong = slope(x)
    right = wrong[2, 1]
    wrong[2, 1] *= factor
    check = reference.check_gradient(value, x, wrong)
    assert check.index == (2, 1)
    assert check.error == pytest.approx(error, rel=1e-4)
    assert check.given == factor * right
    assert check.measured == pytest.approx(right, rel=1e-7)


BUGS = {
    "the slope is forgotten": lambda g, slope_, x, w: (g @ w, g.T @ x),
    "the slope is of the output": lambda g, slope_, x, w: ((g * (1 - np.tanh(np.tanh(slope_)) ** 2)) @ w, g.T @ x),
    "the batch is averaged twice": lambda g, slope_, x, w: (g * (1 - np.tanh(slope_) ** 2) @ w / len(g), None),
    "the sign is turned": lambda g, slope_, x, w: (-(g * (1 - np.tanh(slope_) ** 2)) @ w, None),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_planted_in_a_way_back_is_noticed(rng, bug):
    layer = Dense(weight=rng.normal(size=(3, 4)), bias=np.zeros(3), activation="tanh")
    inputs, target = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))

    def loss(x):
        return reference.mean_squared_error(reference.forward([layer], x).outputs, target)[0]

    passed = reference.forward([layer], inputs)
    gradient = reference.mean_squared_error(passed.outputs, target)[1]
    right = reference.backward([layer], passed, gradient).inputs
    wrong, _ = BUGS[bug](gradient, passed.preactivations[0], inputs, layer.weight)
    assert reference.check_gradient(loss, inputs, right).error < 1e-7
    assert reference.check_gradient(loss, inputs, wrong).error > 0.05


def test_a_batch_norm_that_takes_its_statistics_for_constants_is_noticed(rng):
    inputs, direction = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))

    def loss(x):
        return float(np.sum(direction * reference.batch_norm_train(x, np.ones(2), np.zeros(2)).outputs))

    wrong = reference.batch_norm_train(inputs, np.ones(2), np.zeros(2)).factor * direction
    assert reference.check_gradient(loss, inputs, wrong).error > 0.1


def test_a_gradient_of_zero_is_right_where_the_function_is_flat():
    check = reference.check_gradient(lambda _: 0.0, np.ones(3), np.zeros(3))
    assert check.error == 0.0
    noisy = reference.check_gradient(lambda x: float(1000 + np.sum(x - x)), np.ones(3), np.zeros(3))
    assert noisy.error == 0.0
    assert reference.check_gradient(lambda _: 5.0, np.ones(3), np.array([0.0, 1e-3, 0.0])).index == (1,)


def test_an_element_that_rounding_hides_is_judged_by_the_size_of_the_function():
    def loss(x):
        return 1e6 + float(np.sum(x**2))

    x = np.array([0.01, 0.02])
    assert reference.check_gradient(loss, x, 2 * x).error < 1e-3


def test_an_element_far_below_the_others_is_judged_by_the_largest():
    check = reference.check_gradient(lambda x: float(np.sin(x[0])), np.zeros(2), np.array([1.0, 1e-8]))
    assert check.error == pytest.approx(1e-8 / 1e-3)
    assert check.index == (1,)


def test_the_width_of_a_step_is_what_rounding_left_of_it():
    assert reference.central_differences(lambda x: float(x[0]), [1.0], step=1e-12).tolist() == [1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_infinite_error(bad):
    x = np.array([0.5, 1.5])
    gradient = slope(x)
    gradient[1] = bad
    with np.errstate(invalid="ignore"):
        check = reference.check_gradient(value, x, gradient)
        function = reference.check_gradient(lambda y: bad if y[0] > 0.5 else value(y), x, slope(x))
    assert (check.error, check.index) == (np.inf, (1,))
    assert (function.error, function.index) == (np.inf, (0,))


def test_the_step_follows_the_size_of_the_point():
    far = 1e6
    assert reference.check_gradient(lambda x: float(x[0] ** 3), [far], [3 * far**2]).error < 1e-9


def test_the_point_is_not_changed_and_every_call_gets_an_array_of_its_own():
    seen, x = [], np.array([1.0, 2.0])

    def greedy(y):
        seen.append(y)
        result = value(y)
        y[:] = 99.0
        return result

    assert reference.check_gradient(greedy, x, slope(x)).error < 1e-7
    assert x.tolist() == [1.0, 2.0]
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("point", "gradient", "step", "message"),
    [
        (np.ones(3), np.ones(1), 1e-6, r"gradient: got shape \(1,\), want \(3,\)"),
        (np.ones(0), np.ones(0), 1e-6, r"point: got shape \(0,\), want at least one element"),
        (np.ones(3), np.ones(3), 0.0, "step: got 0.0, want a positive number"),
        (np.ones(3) * 1j, np.ones(3), 1e-6, "point: got complex128, want real numbers"),
    ],
)
def test_what_cannot_be_checked_is_refused(point, gradient, step, message):
    with pytest.raises(ValueError, match=message):
        reference.check_gradient(value, point, gradient, step=step)
