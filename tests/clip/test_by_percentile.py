"""ByPercentile against np.percentile and AutoClip."""

import math

import numpy as np
import pytest

from evengrad.clip import ByPercentile
from evengrad.nouns import SettingError


def scales(policy, norms):
    state, found = policy.init(1), []
    for norm in norms:
        decision = policy(np.array([norm], dtype=np.float32), state)
        state = decision.state
        found.append(float(decision.scale[0]))
    return np.array(found)


def autoclip(norms, percentile):
    """Algorithm 1 of arXiv:2007.14469."""
    with np.errstate(invalid="ignore"):
        return np.array(
            [np.minimum(1, np.percentile(norms[: step + 1], percentile) / norm) for step, norm in enumerate(norms)]
        )


def heavy(seed, steps=400):
    return np.random.default_rng(seed).lognormal(0, 1.5, steps).astype(np.float32).astype(float)


@pytest.mark.parametrize("percentile", [0, 0.01, 1, 10, 33.3333, 50, 87.5, 99.9, 100])
@pytest.mark.parametrize("seed", range(2))
def test_scales_are_those_of_autoclip_while_the_norms_fit_in_the_window(percentile, seed):
    norms = heavy(seed)
    np.testing.assert_allclose(scales(ByPercentile(percentile), norms), autoclip(norms, percentile), rtol=1e-6)


@pytest.mark.parametrize("percentile", [10, 99.97])
def test_a_full_window_of_a_thousand_is_as_exact(percentile):
    norms = np.random.default_rng(0).lognormal(0, 4, 1000).astype(np.float32).astype(float)
    norms[-1] = 1e17
    found = scales(ByPercentile(percentile), norms)[-1]
    assert found == pytest.approx(np.percentile(norms, percentile) / norms[-1], rel=1e-6)


@pytest.mark.parametrize("window", [1, 2, 7, 50])
def test_after_that_it_is_the_percentile_of_the_last_norms(window):
    norms = heavy(3, 200)
    wanted = [
        min(1, np.percentile(norms[max(0, step + 1 - window) : step + 1], 25) / norm) for step, norm in enumerate(norms)
    ]
    np.testing.assert_allclose(scales(ByPercentile(25, window=window), norms), wanted, rtol=1e-6)


def test_the_first_step_is_not_touched():
    assert scales(ByPercentile(10), [3e-9])[0] == 1.0


def test_one_nan_ruins_every_later_step_of_autoclip_and_none_of_ours():
    norms = np.array([1.0, 2.0, math.nan, 3.0, 2.5, 4.0])
    assert np.isnan(autoclip(norms, 10)[2:]).all()
    ours = scales(ByPercentile(10), norms)
    np.testing.assert_allclose(ours[[0, 1, 3, 4, 5]], autoclip(norms[[0, 1, 3, 4, 5]], 10), rtol=1e-6)


def test_one_norm_of_zero_ends_every_later_step_of_autoclip_at_percentile_zero_and_none_of_ours():
    norms = np.array([2.0, 0.0, 3.0, 2.5])
    assert (autoclip(norms, 0)[2:] == 0).all()
    np.testing.assert_allclose(scales(ByPercentile(0), norms), [1, 1, 2 / 3, 0.8], rtol=1e-6)


@pytest.mark.parametrize("percentile", [-0.1, 100.1, float("nan"), float("inf"), "10", None, True])
def test_a_percentile_outside_of_0_to_100_is_refused(percentile):
    with pytest.raises(SettingError, match=r"percentile: got .*, want a number from 0 to 100"):
        ByPercentile(percentile)


@pytest.mark.parametrize("window", [0, -1, 2.5, True, None, 2**24 + 1])
def test_a_window_that_is_no_positive_whole_number_is_refused(window):
    with pytest.raises(SettingError, match=r"window: got .*, want a positive whole number"):
        ByPercentile(10, window=window)
