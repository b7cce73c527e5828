"""ByBlockRms against optax."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evengrad.clip import ByBlockRms, Signals
from evengrad.nouns import SettingError


def scaled(grads, max_rms):
    norms_P = np.array([np.linalg.norm(grad.astype(float)) for grad in grads], dtype=np.float32)
    sizes_P = np.array([grad.size for grad in grads], dtype=np.float32)
    decision = ByBlockRms(max_rms)(norms_P, {}, Signals(sizes_P=sizes_P))
    return [grad * scale for grad, scale in zip(grads, decision.scale, strict=True)]


@pytest.mark.parametrize("max_rms", [0.05, 1.0, 2.5])
def test_scaled_gradients_are_those_of_optax(max_rms):
    rng = np.random.default_rng(0)
    grads = [(rng.normal(size=shape) * size).astype(np.float32) for shape, size in [((3, 4), 1), ((50,), 9), ((), 2)]]
    wanted, _ = optax.clip_by_block_rms(max_rms).update([jnp.asarray(grad) for grad in grads], optax.EmptyState())
    for ours, theirs in zip(scaled(grads, max_rms), wanted, strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-6)


def test_what_comes_out_has_the_threshold_as_its_rms_and_is_left_alone_the_second_time():
    grad = np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32) * 50
    (once,) = scaled([grad], 0.25)
    assert np.sqrt(np.mean(once.astype(float) ** 2)) == pytest.approx(0.25, rel=1e-6)
    np.testing.assert_allclose(scaled([once], 0.25)[0], once, rtol=1e-6)


def test_a_tensor_without_elements_is_left_alone():
    decision = ByBlockRms()(np.array([0.0, 1.0], dtype=np.float32), {}, Signals(sizes_P=np.float32([0, 1])))
    assert decision.scale.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("max_rms", [0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_not_positive_is_refused(max_rms):
    with pytest.raises(SettingError, match=r"max_rms: got .*, want a positive number, finite"):
        ByBlockRms(max_rms)
