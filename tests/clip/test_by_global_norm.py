"""ByGlobalNorm against torch's own clip_grad_norm_, its list of tests, and optax."""

import numpy as np
import optax
import pytest
import torch

from evengrad.clip import ByGlobalNorm
from evengrad.nouns import SettingError

NORM_TYPES = [1.0, 1.5, 2.0, 4.0, float("inf")]


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.zeros(shape, requires_grad=True) for shape in [(3, 4), (5,), (), (2, 3, 2)]]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def decided(parameters, max_norm, norm_type):
    norms = [float(torch.linalg.vector_norm(parameter.grad.double(), norm_type)) for parameter in parameters]
    return ByGlobalNorm(max_norm, norm_type=norm_type)(np.array(norms, dtype=np.float32), {})


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1.0, 7.0, 1e6])
def test_scale_and_norm_are_those_of_clip_grad_norm(max_norm, norm_type):
    parameters = gradients()
    before = [parameter.grad.clone() for parameter in parameters]
    decision = decided(parameters, max_norm, norm_type)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    assert float(decision.norm[0]) == pytest.approx(float(norm), rel=1e-6)
    for parameter, grad in zip(parameters, before, strict=True):
        np.testing.assert_allclose(float(decision.scale[0]) * grad.numpy(), parameter.grad.numpy(), rtol=1e-6)


def test_tiny_gradients_are_clipped_as_by_torch_too():
    parameters = gradients()
    for parameter in parameters:
        parameter.grad *= 1e-6
    before, decision = parameters[0].grad.clone(), decided(parameters, 1e-6, 2.0)
    torch.nn.utils.clip_grad_norm_(parameters, 1e-6)
    np.testing.assert_allclose(float(decision.scale[0]) * before.numpy(), parameters[0].grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_the_norm_afterwards_is_the_threshold(norm_type):
    parameters = gradients(1)
    decision = decided(parameters, 2.0, norm_type)
    after = torch.cat([(parameter.grad.double() * float(decision.scale[0])).flatten() for parameter in parameters])
    assert float(torch.linalg.vector_norm(after, norm_type)) == pytest.approx(2.0, rel=1e-6)
    assert float(decision.norm[0]) > 2.0


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_small_gradients_have_the_scale_one_to_the_bit(norm_type):
    parameters = gradients(2)
    assert float(decided(parameters, 500.0, norm_type).scale[0]) == 1.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("max_norm", [0.3, 100.0])
def test_scaled_gradients_are_those_of_optax(seed, max_norm):
    grads = [parameter.grad.numpy() for parameter in gradients(seed)]
    scale = float(decided(gradients(seed), max_norm, 2.0).scale[0])
    wanted, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours * scale, np.asarray(theirs), rtol=4e-6)  # torch's 1e-6 is the difference


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_ruins_the_gradients_of_torch_is_skipped(bad):
    parameters = gradients()
    parameters[0].grad[0, 0] = bad
    decision = decided(parameters, 1.0, 2.0)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert not all(parameter.grad.isfinite().all() for parameter in parameters)
    assert bool(decision.skip[0])


@pytest.mark.parametrize(("norm_type", "hidden"), [(0, np.nan), (-1.0, np.inf), (-2.0, np.inf)])
def test_the_norm_types_refused_are_those_under_which_torch_finds_bad_gradients_finite(norm_type, hidden):
    found = torch.nn.utils.get_total_norm([torch.tensor([1.0, hidden, 2.0])], norm_type)
    assert bool(found.isfinite())
    with pytest.raises(SettingError, match=r"norm_type: got .*, want a number of at least 1, or math.inf; below 1 it"):
        ByGlobalNorm(1.0, norm_type=norm_type)


def test_an_infinite_threshold_never_clips():
    assert float(ByGlobalNorm(float("inf"))(np.array([1e18], dtype=np.float32), {}).scale[0]) == 1.0


@pytest.mark.parametrize("max_norm", [0, 0.0, -1.0, float("nan"), "1", None, True, 1e300, 1e-60])
def test_a_threshold_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(SettingError, match=r"max_norm: got .*, want a positive number"):
        ByGlobalNorm(max_norm)


@pytest.mark.parametrize("norm_type", [0, 0.5, -1.0, float("-inf"), float("nan"), "2", None, True])
def test_what_is_no_norm_is_refused_by_saying_why(norm_type):
    with pytest.raises(
        SettingError, match=r"norm_type: got .*, want a number of at least 1, or math.inf; .* hides NaN"
    ):
        ByGlobalNorm(1.0, norm_type=norm_type)
