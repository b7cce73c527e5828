"""ByMovingAverage against AdaGC in plain Python floats, and without its deaths."""

import math

import numpy as np
import pytest

from evengrad.clip import ByMovingAverage
from evengrad.nouns import SettingError


def published(rows, *, max_norm=1.0, max_ratio=1.05, decay=0.98, warmup_steps=100):
    """AdaGC, arXiv:2502.11034, algorithm 1: with 0 / 0 as IEEE has it, NaN."""
    means, found = None, []
    for step, norms in enumerate(rows):
        if step < warmup_steps:
            scales = [min(1.0, max_norm / math.hypot(*norms))] * len(norms)
            out = [scale * norm for scale, norm in zip(scales, norms, strict=True)]
            means = out if means is None else [min(pair) for pair in zip(means, out, strict=True)]
        else:
            ratios = [max_ratio * mean / norm if norm else math.nan for mean, norm in zip(means, norms, strict=True)]
            scales = [min(ratio, 1.0) for ratio in ratios]
            means = [
                decay * mean + (1 - decay) * scale * norm
                for mean, scale, norm in zip(means, scales, norms, strict=True)
            ]
        found.append(scales)
    return np.array(found), means


def ran(rows, **settings):
    policy = ByMovingAverage(**settings)
    state, found = policy.init(len(rows[0])), []
    for norms in rows:
        decision = policy(np.array(norms, dtype=np.float32), state)
        state = decision.state
        found.append(decision.scale)
    return np.array(found), state


def norms_with_spikes(seed, steps=400, count=5):
    rng = np.random.default_rng(seed)
    rows = rng.lognormal(0, 0.3, (steps, count)) * rng.lognormal(0, 1, count)
    rows[rng.integers(0, steps, 12), rng.integers(0, count, 12)] *= rng.uniform(5, 500, 12)
    return rows.astype(np.float32).astype(float)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings", [{}, {"max_norm": 5.0, "max_ratio": 1.5, "decay": 0.9, "warmup_steps": 10}, {"warmup_steps": 1}]
)
def test_scales_and_means_are_the_published_ones(seed, settings):
    rows = norms_with_spikes(seed)
    scales, state = ran(rows, **settings, rewarm_steps=None)
    wanted, means = published(rows.tolist(), **settings)
    np.testing.assert_allclose(scales, wanted, rtol=2e-6)
    np.testing.assert_allclose(state["mean_P"], means, rtol=2e-6)
    assert (scales < 1).sum() > 100


def test_beginning_anew_changes_nothing_in_steady_noise():
    rows = norms_with_spikes(0, 2000)
    with_it, without = ran(rows, max_norm=1e9), ran(rows, max_norm=1e9, rewarm_steps=None)
    np.testing.assert_array_equal(with_it[0], without[0])
    assert not np.array_equal(ran(rows, max_norm=1e9, rewarm_steps=100)[0], without[0])


@pytest.mark.parametrize("absent", [slice(0, 1), slice(50, 51), slice(0, 150)])
def test_a_gradient_of_zero_ends_the_published_training_of_a_tensor_and_not_ours(absent):
    rows = np.abs(np.random.default_rng(0).normal(1, 0.1, (400, 2)))
    rows[absent, 1] = 0
    wanted, _ = published(rows.tolist())
    assert not wanted[-1, 1] > 0
    scales, state = ran(rows)
    assert scales[-100:, 1].min() > 0.3
    assert np.isfinite(state["mean_P"]).all()


def test_a_late_tensor_has_a_warm_up_of_its_own():
    rows = np.ones((30, 2))
    rows[:20, 1] = 0
    rows[22, 1] = 50.0
    scales, _ = ran(rows, warmup_steps=5, max_norm=10.0)
    assert scales[22, 1] == pytest.approx(10 / math.hypot(1, 50), rel=1e-6)
    assert scales[22, 0] == 1.0


def test_zero_gradients_leave_the_memory_of_their_tensor_equal_to_the_bit():
    rows = norms_with_spikes(2, 200)
    _, before = ran(rows)
    again = rows[-1:].copy()
    again[0, 3] = 0
    policy = ByMovingAverage()
    decision = policy(again[0].astype(np.float32), before)
    assert all(decision.state[key][3] == before[key][3] for key in before)
    assert all(decision.state[key][2] != before[key][2] for key in ("mean_P", "seen_P"))


@pytest.mark.parametrize("times", [10.0, 1e6])
def test_a_level_that_lasts_is_accepted_after_the_steps_said(times):
    rows = np.abs(np.random.default_rng(1).normal(0.5, 0.02, (500, 1)))
    rows[200:] *= times
    scales, _ = ran(rows, max_norm=1e9, rewarm_steps=50)
    assert scales[200:249].max() < 0.2
    assert (scales[250:350] == 1.0).all()
    assert scales[350:].min() > 0.7
    never, _ = ran(rows, max_norm=1e9, rewarm_steps=None)
    assert never[200:].max() < 0.2


def test_steps_of_the_warm_up_do_not_count_for_beginning_anew():
    rows = [[0.5]] + [[1.0]] * 59
    scales, _ = ran(rows, max_norm=1e9, warmup_steps=20, rewarm_steps=30)
    assert (scales[:20] == 1.0).all()
    assert (scales[20:50] < 1.0).all()
    assert (scales[50:] == 1.0).all()


def test_the_mean_does_not_fall_below_the_floor():
    rows = [[1.0]] * 2 + [[1e-9]] * 2000 + [[1.0]]
    scales, state = ran(rows, warmup_steps=1, decay=0.5, floor=1e-3)
    assert scales[-1, 0] == pytest.approx(1.05e-3, rel=1e-5)
    assert state["mean_P"][0] >= 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_norm": 0.0}, "max_norm: got 0.0, want a positive number"),
        ({"max_ratio": float("nan")}, "max_ratio: got nan, want a positive number"),
        ({"decay": 1.0}, r"decay: got 1.0, want a number in \(0, 1\)"),
        ({"warmup_steps": 0}, "warmup_steps: got 0, want a positive whole number"),
        ({"floor": 0.0}, "floor: got 0.0, want a positive number"),
        ({"rewarm_steps": 0}, "rewarm_steps: got 0, want a positive whole number"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ByMovingAverage(**settings)
