"""ByZScore against the published formula, written out in plain Python floats."""

import math
import statistics

import numpy as np
import pytest

from evengrad.clip import ByZScore
from evengrad.nouns import SettingError


def published(norms, *, z=2.5, decay=0.97, warmup_steps=25):
    """ZClip, arXiv:2504.02507: z-score mode, adaptive scaling, no constant threshold; a buffer for the warm-up."""
    buffer, scales, mean, var = [], [], 0.0, 0.0
    for norm in norms:
        if len(buffer) < warmup_steps:
            buffer.append(norm)
            scales.append(1.0)
            if len(buffer) == warmup_steps:
                mean, var = statistics.fmean(buffer), statistics.pvariance(buffer)
            continue
        std = math.sqrt(var)
        score = (norm - mean) / (std + 1e-6)
        value = mean + z * std / (score / z) if score > z else norm
        scales.append(value / (norm + 1e-6) if norm > value else 1.0)
        mean = decay * mean + (1 - decay) * value
        var = decay * var + (1 - decay) * (value - mean) ** 2
    return scales, mean, var


def ran(norms, **settings):
    policy = ByZScore(**settings)
    state, scales = policy.init(1), []
    for norm in norms:
        decision = policy(np.array([norm], dtype=np.float32), state)
        state = decision.state
        scales.append(float(decision.scale[0]))
    return scales, float(state["mean"][0]), float(state["var"][0])


def norms_with_spikes(seed, steps=400):
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(0.3, 0.3, steps) * np.linspace(2, 1, steps)
    norms[rng.integers(30, steps, 8)] *= rng.uniform(5, 500, 8)
    return [float(norm) for norm in norms.astype(np.float32)]


@pytest.mark.parametrize("settings", [{}, {"z": 1.5, "decay": 0.9, "warmup_steps": 5}, {"warmup_steps": 1}])
@pytest.mark.parametrize("seed", range(5))
def test_scales_mean_and_variance_are_the_published_ones(seed, settings):
    norms = norms_with_spikes(seed)
    scales, mean, var = ran(norms, **settings)
    wanted_scales, wanted_mean, wanted_var = published(norms, **settings)
    np.testing.assert_allclose(scales, wanted_scales, rtol=1e-6)
    np.testing.assert_allclose([mean, var], [wanted_mean, wanted_var], rtol=2e-6)
    assert sum(scale < 1 for scale in scales) >= 5


def test_zeros_and_bad_norms_leave_no_trace():
    norms = norms_with_spikes(1)
    dirty = [item for k, norm in enumerate(norms) for item in ([norm, 0.0, math.nan, math.inf, 1e19][: 1 + k % 5])]
    scales, *statistics_dirty = ran(dirty)
    clean, *statistics_clean = ran(norms)
    assert statistics_dirty == statistics_clean
    kept = [scale for norm, scale in zip(dirty, scales, strict=True) if 0 < norm < 1e18]
    assert kept == clean


def test_a_spike_in_the_warm_up_is_let_through():
    scales, *_ = ran([1.0, 1.1, 50.0, 1.0])
    assert scales == [1.0] * 4


def test_a_huge_norm_in_the_warm_up_does_not_end_the_clipping_for_good():
    scales, mean, var = ran([1.0, 9e17] + [1.0] * 3000 + [100.0], warmup_steps=5)
    assert math.isfinite(var)
    assert scales[-1] < 0.5
    assert mean == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"z": 0.0}, "z"),
        ({"z": float("nan")}, "z"),
        ({"z": float("inf")}, "z"),
        ({"decay": 1.0}, "decay"),
        ({"decay": 0.0}, "decay"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"warmup_steps": 2.5}, "warmup_steps"),
        ({"warmup_steps": True}, "warmup_steps"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, what):
    with pytest.raises(SettingError, match=f"{what}: got .*, want a"):
        ByZScore(**settings)
