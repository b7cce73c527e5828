"""When the guard looks inside: often at the start, seldom later, at once when something moves."""

import math
import random

import pytest

from evengrad.guard._schedule import Schedule
from evengrad.nouns import SettingError


def sampled(schedule, steps, loss=lambda step: 1.0, norm=lambda step: 1.0, skipped=()):
    """Play a run on a CPU: a step is decided upon, then known, then the next is decided upon."""
    found = []
    for step in range(steps):
        if schedule.wants(step):
            found.append(step)
        schedule.note(loss=loss(step), norm=norm(step), skipped=step in skipped, now=step + 1)
    return found


def test_a_quiet_run_is_sampled_densely_at_first_and_seldom_later():
    found = sampled(Schedule("auto"), 1301)
    assert found[:8] == list(range(8))
    assert [step // 25 for step in found[8:11]] == [1, 2, 3]
    assert [step // 50 for step in found[11:29]] == list(range(2, 20))
    assert [step // 100 for step in found[29:]] == [10, 11, 12]


@pytest.mark.parametrize("steps", [1000, 2000, 3000, 10000])
@pytest.mark.parametrize("turns", [2, 3, 4, 5])
def test_losses_that_take_turns_are_all_sampled_in_the_second_half_of_a_run(steps, turns):
    late = [step for step in sampled(Schedule("auto"), steps) if step >= steps / 2]
    shares = [sum(step % turns == rest for step in late) for rest in range(turns)]
    assert min(shares) >= 1
    assert max(shares) <= len(late) / turns + 2


def test_the_steps_are_the_same_in_every_run_and_draw_no_random_number():
    random.seed(3)
    state = random.getstate()
    assert sampled(Schedule("auto"), 2000) == sampled(Schedule("auto"), 2000)
    assert random.getstate() == state


def test_a_number_means_every_so_many_steps_whatever_happens():
    assert sampled(Schedule(7), 30, skipped=range(30)) == [0, 7, 14, 21, 28]


def test_none_means_never():
    assert sampled(Schedule(None), 300, skipped=(5,)) == []


@pytest.mark.parametrize("what", ["loss", "norm"])
@pytest.mark.parametrize("value", [5.0, math.inf, math.nan])
def test_a_jump_out_of_the_range_begins_a_burst_at_the_next_step(what, value):
    course = {what: lambda step: value if step == 230 else 1.0 + 0.01 * math.sin(step)}
    assert [step for step in sampled(Schedule("auto"), 300, **course) if 225 < step < 250] == [231, 232, 233, 234]


def test_a_skipped_step_begins_a_burst():
    assert {231, 232, 233, 234} <= set(sampled(Schedule("auto"), 300, skipped=(230,)))


def test_noise_and_a_slow_rise_begin_none():
    generator = random.Random(0)
    noisy = {"loss": lambda step: math.exp(generator.gauss(0, 0.3)), "norm": lambda step: 1.005**step}
    assert sampled(Schedule("auto"), 1000, **noisy) == sampled(Schedule("auto"), 1000)


def test_a_tiny_deviation_of_a_flat_course_begins_none():
    flat = {"loss": lambda step: 1.0 if step != 230 else 1.5}
    assert 231 not in sampled(Schedule("auto"), 240, **flat)


def test_a_negative_loss_that_rises_above_zero_begins_a_burst():
    below = {"loss": lambda step: 0.5 if step == 230 else -1.0}
    assert 231 in sampled(Schedule("auto"), 240, **below)


def test_a_run_that_moves_all_the_time_is_sampled_at_4_steps_of_104():
    found = [step for step in sampled(Schedule("auto"), 2040, skipped=range(2040)) if step >= 1000]
    assert len(found) <= 4 * 10 + 11


def test_a_run_from_a_checkpoint_is_sampled_densely_again():
    schedule = Schedule("auto")
    schedule.start(5003)
    assert [step for step in range(5003, 5028) if schedule.wants(step)] == [*range(5003, 5011)]


def test_the_last_step_of_a_burst_is_known():
    schedule = Schedule("auto")
    schedule.note(loss=None, norm=None, skipped=True, now=50)
    assert [step for step in range(48, 58) if schedule.burst_ends(step)] == [53]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "often", ""])
def test_another_setting_is_refused(every):
    with pytest.raises(SettingError, match=r"sample_every_steps: got .*, want a whole number from 1, 'auto' or None"):
        Schedule(every)
