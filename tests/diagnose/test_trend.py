"""The course of a loss in numbers: against series whose course is known, and noise that has none."""

import math
import random
import statistics

import pytest

from evengrad.diagnose._trend import noise_of, trend_of
from evengrad.nouns import Reading, Record


def record(losses, first_step=0, lrs=None):
    lrs = lrs or [()] * len(losses)
    numbered = enumerate(zip(losses, lrs, strict=True), first_step)
    return Record(readings=tuple(Reading(step=step, loss=loss, lrs=lr) for step, (loss, lr) in numbered))


def trend(losses, **settings):
    return trend_of(record(losses, **settings))


def noise(count, std=1.0, level=0.0, seed=0):
    rng = random.Random(seed)
    return [level + rng.gauss(0.0, std) for _ in range(count)]


def test_fewer_than_ten_losses_have_no_trend():
    assert trend([1.0] * 9) is None
    assert trend([1.0] * 9 + [math.nan, None]) is None
    assert trend([1.0] * 10) is not None
    assert trend_of(Record()) is None


def test_start_and_end_are_medians_that_outliers_do_not_move():
    seen = trend([3.0, 3.0, 900.0, 3.0, 3.0] + [2.0] * 60 + [1.0] * 30 + [-500.0, math.nan])
    assert (seen.start, seen.end) == (3.0, 1.0)
    assert not seen.finite
    assert seen.first_bad_step == 96
    assert not seen.last_finite


def test_the_noise_of_a_loss_is_its_standard_deviation_around_a_slow_course():
    falling = [10.0 * 0.998**step + error for step, error in enumerate(noise(2000, std=0.3))]
    assert noise_of(falling) == pytest.approx(0.3, rel=0.1)
    assert statistics.stdev(falling) > 2.0  # the course itself is no noise


@pytest.mark.parametrize("count", [50, 200, 1000])
def test_white_noise_neither_falls_nor_rises_in_a_thousand_runs_but_for_a_few(count):
    seen = [trend(noise(count, level=5.0, seed=seed)) for seed in range(300)]
    assert sum(one.fell or one.rose for one in seen) <= 6
    assert sum(one.still_falling or one.rising for one in seen) <= 6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_a_fall_is_seen_whatever_the_unit_and_the_sign_of_the_loss(scale, shift):
    losses = [scale * (shift + 3.0 * 0.97**step + error) for step, error in enumerate(noise(200, std=0.2))]
    seen = trend(losses)
    assert seen.fell
    assert not seen.rose
    assert seen.fallen_frac == pytest.approx((seen.start - seen.end) / max(abs(seen.start), abs(seen.end)))
    assert not seen.still_falling


def test_a_slow_fall_below_the_noise_of_a_single_loss_is_seen_over_many():
    seen = trend([5.0 - 1e-3 * step + error for step, error in enumerate(noise(3000, std=1.0))])
    assert seen.fell
    assert seen.still_falling


def test_a_rise_is_seen_and_has_a_negative_share():
    seen = trend([1.0 + 0.02 * step + error for step, error in enumerate(noise(200, std=0.1))])
    assert seen.rose
    assert seen.rising
    assert seen.fallen_frac < 0.0


def test_a_rise_right_after_the_first_steps_counts_though_the_quarters_are_alike():
    assert trend([1.0] * 30 + noise(970, std=0.1, level=2.0)).rose
    assert trend([3.0] * 30 + noise(970, std=0.1, level=2.0)).fell


def test_a_fixed_batch_without_noise_is_judged_to_rounding():
    assert trend([0.5] * 100).fall_sigmas == 0.0
    assert trend([0.5 - 1e-4 * step for step in range(100)]).fell
    assert not trend([0.5 + 1e-8 * (step % 3) for step in range(100)]).rose


def test_period_two_is_one_for_alternation_and_nothing_for_noise_although_noise_alternates_too():
    alternating = trend([1.0 + 0.3 * (-1) ** step for step in range(200)])
    white = noise(1000, level=5.0)
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(white, white[1:], white[2:], strict=False)) / 998
    assert alternating.period_two == pytest.approx(1.0)
    assert turns == pytest.approx(2 / 3, abs=0.05)
    assert abs(trend(white).period_two) < 0.2
    assert abs(trend([3.0 * 0.99**step for step in range(400)][:40]).period_two) <= 1.0


def test_steps_count_by_their_learning_rate():
    constant = trend([1.0] * 100, lrs=[(0.1,)] * 100)
    rising = trend([1.0] * 100, lrs=[(0.001 * step,) for step in range(100)])
    falling = trend([1.0] * 100, lrs=[(0.1 * (1 - step / 100),) for step in range(100)])
    unknown = trend([1.0] * 100)
    assert constant.full_steps == pytest.approx(100.0)
    assert rising.full_steps == pytest.approx(50.0, abs=1.0)
    assert falling.full_steps == pytest.approx(50.0, abs=1.0)
    assert unknown.full_steps == 100.0
    assert [one.warming_up for one in (constant, rising, falling, unknown)] == [False, True, False, False]


def test_a_run_that_was_resumed_does_not_begin_at_its_start():
    assert trend([1.0] * 20).from_start
    resumed = trend([1.0] * 20, first_step=500)
    assert not resumed.from_start
    assert (resumed.first_step, resumed.last_step, resumed.steps) == (500, 519, 20)


def test_steps_without_a_loss_are_left_out():
    seen = trend([2.0, None] * 20)
    assert (seen.count, seen.steps) == (20, 39)
