"""NormalizedGradient against optax and its formula."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evengrad.clip import NormalizedGradient
from evengrad.nouns import SettingError


@pytest.mark.parametrize("norm", [0.1, 1.0, 50.0])
def test_scaled_gradients_are_those_of_optax(norm):
    grads = [np.random.default_rng(0).normal(size=size).astype(np.float32) for size in (4, 60)]
    norms_P = np.array([np.linalg.norm(grad) for grad in grads], dtype=np.float32)
    scale = NormalizedGradient(norm)(norms_P, {}).scale[0]
    transform = optax.normalize_by_update_norm(scale_factor=norm, eps=0.0)
    wanted, _ = transform.update([jnp.asarray(grad) for grad in grads], optax.EmptyState())
    for grad, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad * scale, np.asarray(theirs), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e-6, 1.0, 1e30])
def test_every_gradient_gets_the_norm(size):
    decision = NormalizedGradient(3.0)(np.array([3 * size, 4 * size], dtype=np.float32), {})
    assert float(decision.scale[0]) * 5 * size == pytest.approx(3.0, rel=1e-6)


def test_the_scale_is_finite_for_the_smallest_norm():
    for norm in (1e-37, 1.0, 1e38):
        decision = NormalizedGradient(norm)(np.array([1e-45], dtype=np.float32), {})
        assert 0 < decision.scale[0] <= 1.01e30


@pytest.mark.parametrize("norm", [0, -1.0, float("nan"), float("inf"), "1"])
def test_a_norm_that_is_not_positive_is_refused(norm):
    with pytest.raises(SettingError, match=r"norm: got .*, want a positive number, finite"):
        NormalizedGradient(norm)
