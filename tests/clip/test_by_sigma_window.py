"""BySigmaWindow against OLMo's SkipStep in plain Python floats, and without its death."""

import math
import statistics

import numpy as np
import pytest

from evengrad.clip import BySigmaWindow, Signals
from evengrad.nouns import SettingError


def published(norms, losses, *, sigma=6.0, window=128):
    """The rule of OLMo-core: everything enters, the newest is not in its own window, deviations are unbiased."""
    skips = []
    for step, pair in enumerate(zip(norms, losses, strict=True)):
        before = [values[max(0, step - window) : step] for values in (norms, losses)]
        if step < max(2, window // 2):
            skips.append(False)
            continue
        within = [
            one - statistics.fmean(past) <= sigma * statistics.stdev(past)
            for one, past in zip(pair, before, strict=True)
        ]
        skips.append(not all(within))
    return skips


def ran(norms, losses=None, **settings):
    policy = BySigmaWindow(**settings)
    state, skips = policy.init(1), []
    for step, norm in enumerate(norms):
        given = Signals() if losses is None else Signals(loss=np.array([losses[step]], dtype=np.float32))
        decision = policy(np.array([norm], dtype=np.float32), state, given)
        state = decision.state
        assert decision.scale[0] == 1.0
        skips.append(bool(decision.skip[0]))
    return skips, state


def course(seed, steps=400):
    rng = np.random.default_rng(seed)
    norms, losses = rng.lognormal(0, 0.3, steps), rng.normal(3, 0.2, steps) * np.linspace(1, 0.3, steps)
    norms[rng.integers(0, steps, 5)] *= 20
    losses[rng.integers(0, steps, 5)] += 9
    losses[300:] -= 5
    return [values.astype(np.float32).astype(float).tolist() for values in (norms, losses)]


@pytest.mark.parametrize("settings", [{}, {"sigma": 2.0, "window": 12}, {"sigma": 3.0, "window": 3}])
@pytest.mark.parametrize("seed", range(4))
def test_the_steps_skipped_are_the_published_ones(seed, settings):
    norms, losses = course(seed)
    skips, _ = ran(norms, losses, **settings, std_floor=0.0)
    assert skips == published(norms, losses, **settings)
    assert 2 <= sum(skips) < 200


def test_a_loss_alone_and_a_norm_alone_can_skip():
    rng = np.random.default_rng(0)
    quiet, spike = rng.normal(3, 0.1, 100).tolist(), 9.0
    assert ran([*quiet, 3.0], [*quiet, spike])[0][-1]
    assert ran([*quiet, spike], [*quiet, 3.0])[0][-1]
    assert not ran([*quiet, 3.0], [*quiet, 3.0])[0][-1]


def test_a_fall_is_never_skipped():
    norms = [*np.random.default_rng(0).normal(3, 0.01, 100).tolist(), 0.01]
    assert not ran(norms, [-1e3 * (norm < 1) for norm in norms])[0][-1]


def test_one_nan_loss_stops_the_published_training_until_it_leaves_the_window_and_not_ours():
    rng = np.random.default_rng(0)
    norms, losses = rng.uniform(1, 2, 60).tolist(), rng.uniform(1, 2, 60).tolist()
    losses[30] = math.nan
    settings = {"window": 8, "sigma": 20.0}
    assert all(published_with_nan(norms, losses, **settings)[30:39])
    assert not any(ran(norms, losses, **settings)[0][30:])


def published_with_nan(norms, losses, *, sigma, window):
    skips = []
    for step in range(len(norms)):
        past = np.array([losses[max(0, step - window) : step], norms[max(0, step - window) : step]])
        now = np.array([losses[step], norms[step]])
        skips.append(step >= max(2, window // 2) and not (now - past.mean(1) <= sigma * past.std(1, ddof=1)).all())
    return skips


@pytest.mark.parametrize("loss", [math.inf, -math.inf, 1e20])
def test_a_loss_that_is_not_finite_is_skipped_and_leaves_no_trace(loss):
    norms, losses = [values[:150] for values in course(2)]
    _, before = ran(norms, losses)
    policy = BySigmaWindow()
    decision = policy(np.ones(1, dtype=np.float32), before, Signals(loss=np.array([loss], dtype=np.float32)))
    assert bool(decision.skip[0])
    assert all(decision.state[key].tobytes() == before[key].tobytes() for key in before)


def test_without_a_loss_the_norms_alone_are_judged():
    norms, _ = course(3)
    skips, state = ran(norms)
    assert skips == ran(norms, [math.nan] * 400)[0] == ran(norms, [1.0] * 400)[0]
    assert sum(skips) > 0
    assert np.isinf(state["losses"]).all()


def test_a_level_that_lasts_is_accepted_after_a_few_skips():
    rng = np.random.default_rng(0)
    norms = [*rng.normal(1, 0.05, 200), *rng.normal(10, 0.5, 300)]
    skips, _ = ran(norms)
    assert 1 <= sum(skips) <= 5
    assert not any(skips[210:])


def test_the_least_rise_after_equal_values_is_skipped_as_published_and_not_with_the_floor():
    norms = [1.0] * 100 + [1.0 + 1e-6]
    assert ran(norms, std_floor=0.0)[0][-1]
    assert not ran(norms)[0][-1]
    assert not ran([1.0] * 100 + [1.059])[0][-1]
    assert ran([1.0] * 100 + [1.061])[0][-1]


def test_the_floor_is_a_size_also_where_the_mean_is_negative():
    assert not ran([1.0] * 101, [-1.0] * 100 + [-0.95])[0][-1]
    assert ran([1.0] * 101, [-1.0] * 100 + [-0.93])[0][-1]


def test_huge_numbers_do_not_overflow():
    rng = np.random.default_rng(0)
    values = (rng.uniform(-1, 1, 300) * 9e17).tolist()
    skips, state = ran([abs(value) for value in values], values)
    assert not any(skips)
    assert np.isfinite(state["losses"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma: got 0.0, want a positive number"),
        ({"window": 1}, "window: got 1, want a whole number, at least 2"),
        ({"std_floor": -0.1}, "std_floor: got -0.1, want 0 or a positive number"),
        ({"std_floor": float("nan")}, "std_floor: got nan, want 0 or a positive number"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        BySigmaWindow(**settings)
