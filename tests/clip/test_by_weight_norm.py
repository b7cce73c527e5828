"""ByWeightNorm against optax's adaptive clipping, and what starts at 0."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evengrad.clip import ByWeightNorm, Signals
from evengrad.nouns import SettingError


def scales(norms, weights, sizes, **settings):
    arrays = [np.array(values, dtype=np.float32) for values in (norms, weights, sizes)]
    return ByWeightNorm(**settings)(arrays[0], {}, Signals(weight_norms_P=arrays[1], sizes_P=arrays[2])).scale


@pytest.mark.parametrize("clipping", [0.01, 0.16, 1.0])
def test_scaled_gradients_are_those_of_optax_where_the_whole_tensor_is_its_unit(clipping):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=size).astype(np.float32) for size in (5, 70, 3)]
    grads = [
        (rng.normal(size=one.size) * size).astype(np.float32) for one, size in zip(weights, (1, 0.001, 9), strict=True)
    ]
    update = optax.adaptive_grad_clip(clipping).update
    wanted, _ = update([jnp.asarray(one) for one in grads], optax.EmptyState(), [jnp.asarray(one) for one in weights])
    found = scales(
        [np.linalg.norm(one) for one in grads],
        [np.linalg.norm(one) for one in weights],
        [one.size for one in weights],
        clipping=clipping,
    )
    for grad, scale, theirs in zip(grads, found, wanted, strict=True):
        np.testing.assert_allclose(grad * scale, np.asarray(theirs), rtol=1e-6)


def reached(step_of, steps=300, lr=0.1, elements=64.0):
    """Train a tensor from 0 with gradients of norm 1: the size of its elements, all of which move alike."""
    weight = 0.0
    for _ in range(steps):
        weight += lr * step_of(weight, elements)
    return weight / np.sqrt(elements)


def test_a_tensor_that_starts_at_zero_is_frozen_without_eps_nearly_with_the_published_one_and_not_with_ours():
    ours = reached(lambda weight, elements: float(scales([1.0], [weight], [elements])[0]))
    no_eps = reached(lambda weight, elements: min(1.0, 0.01 * weight))
    published = reached(lambda weight, elements: min(1.0, 0.01 * max(weight, 1e-3)))
    assert no_eps == 0
    assert published < 1e-4
    assert ours > 2e-3


def test_the_smallest_size_is_that_of_an_element():
    found = scales([1.0, 1.0], [0.0, 0.0], [100.0, 10000.0], eps=0.02)
    np.testing.assert_allclose(found, [0.01 * 0.02 * 10, 0.01 * 0.02 * 100], rtol=1e-6)


def test_weights_that_are_not_finite_do_not_make_the_scale_so():
    assert np.isfinite(scales([1.0, 1.0], [np.nan, np.inf], [4.0, 4.0])).all()


@pytest.mark.parametrize("settings", [{"clipping": 0.0}, {"clipping": float("nan")}, {"eps": 0.0}, {"eps": -1.0}])
def test_a_setting_that_is_not_positive_is_refused(settings):
    with pytest.raises(SettingError, match=r"(clipping|eps): got .*, want a positive number"):
        ByWeightNorm(**settings)
