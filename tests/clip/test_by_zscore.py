"""ByZScore against its formula in plain Python floats, and what it does to made-up norms."""

import math
import statistics

import numpy as np
import pytest

from evengrad.clip import ByZScore
from evengrad.nouns import SettingError


def formula(norms, *, z=2.5, decay=0.97, warmup_steps=1, std_floor=1.0):
    """Ours: the deviation has a floor, the bound and not the clipped norm is remembered, averages of few are plain."""
    scales, kept, mean, var = [], [], 0.0, 0.0
    for norm in norms:
        bound = mean + z * max(math.sqrt(var), std_floor * mean)
        clipped = len(kept) >= warmup_steps and norm > bound
        scales.append((mean + (bound - mean) ** 2 / (norm - mean)) / norm if clipped else 1.0)
        kept.append(min(norm, bound) if clipped else norm)
        if len(kept) * (1 - decay) < 1:
            mean, var = statistics.fmean(kept), statistics.pvariance(kept)
        else:
            mean = decay * mean + (1 - decay) * kept[-1]
            var = decay * var + (1 - decay) * (kept[-1] - mean) ** 2
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_steps": 25},
        {"warmup_steps": 60, "std_floor": 0.05},
        {"z": 1.5, "decay": 0.9, "warmup_steps": 5, "std_floor": 0.3},
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_scales_mean_and_variance_are_those_of_the_formula(seed, settings):
    norms = norms_with_spikes(seed)
    scales, mean, var = ran(norms, **settings)
    wanted_scales, wanted_mean, wanted_var = formula(norms, **settings)
    np.testing.assert_allclose(scales, wanted_scales, rtol=1e-5)
    np.testing.assert_allclose([mean, var], [wanted_mean, wanted_var], rtol=1e-5)
    assert sum(scale < 1 for scale in scales) >= 4


def test_zeros_and_bad_norms_leave_no_trace():
    norms = norms_with_spikes(1)
    dirty = [item for k, norm in enumerate(norms) for item in ([norm, 0.0, math.nan, math.inf, 1e19][: 1 + k % 5])]
    scales, *statistics_dirty = ran(dirty)
    clean, *statistics_clean = ran(norms)
    assert statistics_dirty == statistics_clean
    kept = [scale for norm, scale in zip(dirty, scales, strict=True) if 0 < norm < 1e18]
    assert kept == clean


def test_a_spike_in_the_warm_up_is_let_through():
    scales, *_ = ran([1.0, 1.1, 50.0, 1.0], warmup_steps=25)
    assert scales == [1.0] * 4


def test_the_second_step_can_be_clipped():
    scales, *_ = ran([1.0, 1e4])
    assert scales[1] * 1e4 == pytest.approx(1 + 2.5**2 / (1e4 - 1), rel=1e-6)


def test_clipping_starts_after_a_warm_up_longer_than_the_memory():
    scales, *_ = ran([1.0] * 200 + [100.0, 100.0], warmup_steps=201)
    assert scales[200] == 1.0
    assert scales[201] < 1.0


def test_a_huge_norm_in_the_warm_up_does_not_end_the_clipping_for_good():
    scales, mean, var = ran([1.0, 9e17] + [1.0] * 3000 + [100.0], warmup_steps=5)
    assert math.isfinite(var)
    assert scales[-1] < 0.5
    assert mean == pytest.approx(1.0, rel=0.1)


def noisy(levels, spread, seed=0):
    return np.abs(levels * (1 + spread * np.random.default_rng(seed).normal(size=len(levels))))


@pytest.mark.parametrize(("times", "within"), [(3, 1), (10, 20), (100, 60), (1e6, 200)])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_a_level_that_lasts_is_accepted(times, within, spread):
    levels = np.where(np.arange(1000) < 300, 1.0, times)
    scales, mean, _ = ran(noisy(levels, spread))
    assert min(scales[300 + within :]) == 1.0
    assert mean == pytest.approx(times, rel=0.2)


@pytest.mark.parametrize("growth", [1.01, 0.99])
@pytest.mark.parametrize("start", [0, 300])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_slow_growth_and_decline_are_never_clipped(growth, start, spread):
    levels = growth ** np.maximum(np.arange(900.0) - start, 0)
    assert min(ran(noisy(levels, spread))[0]) == 1.0


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e12])
def test_stationary_noise_is_not_clipped(spread, unit):
    scales, *_ = ran(noisy(np.full(1000, unit), spread))
    assert sum(scale < 1 for scale in scales) <= 2


@pytest.mark.parametrize("size", [10.0, 1e4, 1e17])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("when", [3, 30, 300])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_spikes_are_brought_near_the_mean_and_move_it_little(size, length, when, spread):
    norms = noisy(np.ones(when), spread)
    _, mean, _ = ran(norms)
    scales, after, var = ran([*norms, *[size] * length])
    through = size * np.array(scales[when:])
    weight = max(1 / (when + 1), 0.03)
    assert max(through) < mean + 2.5 * mean * length
    assert through[0] == pytest.approx(mean + (2.5 * mean) ** 2 / (size - mean), rel=1e-4)
    assert after < mean * (1 + 2.9 * weight) ** length
    assert math.isfinite(var)


def test_decisions_do_not_depend_on_the_unit_of_the_norms():
    norms = norms_with_spikes(2)
    wanted, *_ = ran(norms)
    for unit in (2.0**-50, 2.0**40):
        assert ran([norm * unit for norm in norms])[0] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_the_state_stays_finite_whatever_comes(seed):
    rng = np.random.default_rng(seed)
    norms = 10 ** rng.uniform(-44, 38, 2000)
    scales, mean, var = ran([float(norm) for norm in norms])
    assert math.isfinite(mean)
    assert math.isfinite(var)
    assert all(0 <= scale <= 1 for scale in scales)


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
        ({"std_floor": 0.0}, "std_floor"),
        ({"std_floor": -1.0}, "std_floor"),
        ({"std_floor": True}, "std_floor"),
        ({"std_floor": float("nan")}, "std_floor"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, what):
    with pytest.raises(SettingError, match=f"{what}: got .*, want a"):
        ByZScore(**settings)
