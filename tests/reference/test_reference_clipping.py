"""Norms and clipping against torch, and max-norm against its formula."""

import math

import numpy as np
import pytest
import torch

from evengrad import reference

NORM_TYPES = [1.0, 1.5, 2.0, 3.0, 7.0, math.inf]
SHAPES = [(4, 3), (5,), (), (2, 3, 2), (0,)]


def parameters_of(gradients):
    found = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=torch.float64))
        parameter.grad = torch.tensor(gradient)
        found.append(parameter)
    return found


def draw(rng, scale=1.0):
    return [np.asarray(scale * rng.normal(size=shape)) for shape in SHAPES]


def check_equal(ours, parameters, **tolerance):
    for one, parameter in zip(ours, parameters, strict=True):
        assert one.shape == tuple(parameter.grad.shape)
        np.testing.assert_allclose(one, parameter.grad.numpy(), equal_nan=True, **tolerance)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("max_norm", [0.1, 1.0, math.inf])
def test_clipping_by_norm_is_that_of_torch(rng, norm_type, scale, max_norm):
    gradients = draw(rng, scale)
    parameters = parameters_of(gradients)
    if math.isinf(norm_type):  # torch knows no largest element of an empty tensor
        gradients, parameters = gradients[:-1], parameters[:-1]
    theirs = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type)
    clipped, before = reference.clip_by_norm(gradients, max_norm=max_norm, norm_type=norm_type)
    assert before == pytest.approx(float(theirs), rel=1e-10)
    check_equal(clipped, parameters, rtol=1e-10)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_clipping_each_by_norm_is_torch_one_at_a_time(rng, norm_type):
    gradients = draw(rng, 2.0)[:-1]
    parameters = parameters_of(gradients)
    theirs = [float(torch.nn.utils.clip_grad_norm_([one], 1.0, norm_type=norm_type)) for one in parameters]
    clipped, before = reference.clip_each_by_norm(gradients, max_norm=1.0, norm_type=norm_type)
    np.testing.assert_allclose(before, theirs, rtol=1e-10)
    check_equal(clipped, parameters, rtol=1e-10)


def test_clipping_by_value_and_of_weights_is_torch_to_the_bit(rng):
    gradients = [*draw(rng, 2.0), np.array([np.nan, np.inf, -np.inf, 0.0])]
    parameters = parameters_of(gradients)
    torch.nn.utils.clip_grad_value_(parameters, 0.7)
    check_equal(reference.clip_by_value(gradients, clip_value=0.7), parameters, rtol=0)
    check_equal(reference.clip_weights(gradients, clip_value=0.7), parameters, rtol=0)
    check_equal([reference.truncate(one, bound=0.7) for one in gradients], parameters, rtol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_what_is_not_finite_spoils_a_common_norm_as_in_torch_and_its_own_tensor_only(bad, norm_type):
    gradients = [np.array([bad, 1.0]), np.array([3.0, 4.0])]
    parameters = parameters_of(gradients)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type=norm_type)
    with np.errstate(invalid="ignore"):
        clipped, before = reference.clip_by_norm(gradients, max_norm=1.0, norm_type=norm_type)
        each, _ = reference.clip_each_by_norm(gradients, max_norm=1.0, norm_type=norm_type)
    check_equal(clipped, parameters, rtol=1e-12)
    assert not math.isfinite(before)
    assert reference.norm(each[1], norm_type=norm_type) == pytest.approx(1.0, rel=1e-6)


def test_the_direction_stays_and_nothing_given_is_changed(rng):
    gradients = draw(rng, 5.0)
    kept = [one.copy() for one in gradients]
    clipped, before = reference.clip_by_norm(gradients, max_norm=1.0)
    for one, original, copy in zip(clipped, gradients, kept, strict=True):
        np.testing.assert_allclose(one * before, original, rtol=1e-6)
        assert np.array_equal(original, copy)
    unclipped, _ = reference.clip_by_norm(gradients, max_norm=1e9)
    for one, original in zip(unclipped, gradients, strict=True):
        assert np.array_equal(one, original)
        assert original.size == 0 or not np.shares_memory(one, original)


def test_zeros_and_no_gradients_at_all_have_norm_zero():
    clipped, before = reference.clip_by_norm([np.zeros(3)], max_norm=1.0)
    assert clipped[0].tolist() == [0.0] * 3
    assert before == 0.0
    assert reference.clip_by_norm([], max_norm=1.0) == ((), 0.0)
    assert reference.clip_each_by_norm([], max_norm=1.0)[1].shape == (0,)
    assert reference.clip_by_value([], clip_value=1.0) == ()
    assert reference.total_norm([]) == 0.0
    assert reference.squared_norms([]).shape == (0,)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0])
def test_a_norm_neither_overflows_nor_underflows(norm_type):
    for size in (1e300, 1e-300):
        found = reference.norm([size, -size], norm_type=norm_type)
        assert found == pytest.approx(size * 2 ** (1 / norm_type), rel=1e-14)


def test_nan_outweighs_inf_in_a_norm():
    assert math.isnan(reference.norm([np.inf, np.nan, 1.0]))
    assert reference.norm([1.0, -np.inf]) == math.inf


def test_squared_norms_are_the_squares_of_the_norms_and_exact_sums(rng):
    gradients = draw(rng, 3.0)
    found = reference.squared_norms(gradients)
    exact = [math.fsum((one.ravel() ** 2).tolist()) for one in gradients]
    np.testing.assert_allclose(found, exact, rtol=1e-14)
    np.testing.assert_allclose(np.sqrt(found), [reference.norm(one) for one in gradients], rtol=1e-14)
    assert reference.total_norm(gradients) == pytest.approx(math.sqrt(math.fsum(exact)), rel=1e-14)


def test_squares_of_half_precision_are_summed_in_float64():
    assert reference.squared_norms([np.full(4, 6e4, dtype=np.float16)])[0] == 4 * 6e4**2


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3, 3), (1, 6)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_unit_is_no_longer_than_the_bound_and_shorter_ones_keep_their_bits(rng, shape, axis):
    weights = rng.normal(size=shape)
    bound = 0.97 * float(np.median([np.linalg.norm(one) for one in np.moveaxis(weights, axis, 0)]))
    limited = reference.limit_unit_norms(weights, max_norm=bound, unit_axis=axis)
    theirs = torch.renorm(torch.tensor(weights), 2, axis % len(shape), bound).numpy()
    np.testing.assert_allclose(limited, theirs, rtol=1e-6)  # torch adds 1e-7 to the norm
    for before, after in zip(np.moveaxis(weights, axis, 0), np.moveaxis(limited, axis, 0), strict=True):
        length = np.linalg.norm(before)
        if length <= bound:
            assert np.array_equal(before, after)
        else:
            np.testing.assert_allclose(after, before * bound / length, rtol=1e-12)


def test_a_unit_of_zeros_stays_and_a_unit_with_nan_hurts_no_other():
    weights = np.array([[0.0, 0.0], [np.nan, 1.0], [3.0, 4.0]])
    limited = reference.limit_unit_norms(weights, max_norm=2.5)
    assert limited[0].tolist() == [0.0, 0.0]
    assert np.isnan(limited[1]).all()
    np.testing.assert_allclose(limited[2], [1.5, 2.0])
    assert reference.limit_unit_norms(np.zeros((0, 3)), max_norm=1.0).shape == (0, 3)
    assert reference.limit_unit_norms(np.zeros((3, 0)), max_norm=1.0).shape == (3, 0)


CLIPPERS = [
    ("bound", lambda c: reference.truncate([1.0], bound=c)),
    ("clip_value", lambda c: reference.clip_by_value([[1.0]], clip_value=c)),
    ("clip_value", lambda c: reference.clip_weights([], clip_value=c)),
    ("max_norm", lambda c: reference.clip_by_norm([], max_norm=c)),
    ("max_norm", lambda c: reference.clip_each_by_norm([[1.0]], max_norm=c)),
    ("max_norm", lambda c: reference.limit_unit_norms([[1.0]], max_norm=c)),
]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, None, "1", True])
@pytest.mark.parametrize(("name", "clipper"), CLIPPERS)
def test_a_bound_that_is_not_positive_is_refused(name, clipper, bound):
    came = f"'{bound}'" if isinstance(bound, str) else bound
    with pytest.raises(ValueError, match=f"^{name}: got {came}, want a positive number$"):
        clipper(bound)


@pytest.mark.parametrize("norm_type", [0.0, 0.5, -1.0, math.nan])
def test_a_norm_that_is_none_is_refused(norm_type):
    for call in (reference.norm, reference.total_norm):
        with pytest.raises(ValueError, match=f"norm_type: got {norm_type}, want a number of 1 or more, or inf"):
            call([], norm_type=norm_type)


@pytest.mark.parametrize(("shape", "axis"), [((3,), 0), ((), 0), ((3, 2), 2), ((3, 2), -3)])
def test_weights_without_units_are_refused(shape, axis):
    with pytest.raises(ValueError, match=r"weights: got shape .* and unit_axis -?\d, want"):
        reference.limit_unit_norms(np.ones(shape), max_norm=1.0, unit_axis=axis)


def test_complex_gradients_are_refused():
    with pytest.raises(ValueError, match="values: got complex128, want real numbers"):
        reference.clip_by_norm([np.ones(2) * 1j], max_norm=1.0)
