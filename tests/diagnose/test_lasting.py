"""Harm that the end of a run hides: a symptom that went away, and the steps that it had cost."""

import random
from dataclasses import replace

import pytest

from evengrad.diagnose import findings_of
from evengrad.nouns import LayerReading, Reading, Record


def layers(drop):
    grads = [10.0 ** -(drop * (1 - place / 4)) for place in range(5)]
    return tuple(
        LayerReading(name=str(place), kind="Linear", weighted=True, numel=1, activation_rms=1.0, grad_rms=grad)
        for place, grad in enumerate(grads)
    )


def run(sick_until, loss_of, steps=400, every=10):
    noise = random.Random(0)
    readings = []
    for step in range(steps):
        seen = layers(6.0 if step < sick_until else 0.5) if step % every == 0 else ()
        readings.append(Reading(step=step, loss=loss_of(step) + noise.gauss(0, 0.01), layers=seen))
    return Record(readings=tuple(readings))


def stuck_until(when, low=1.0):
    return lambda step: 2.3 if step < when else max(low, 2.3 - 0.01 * (step - when))


def codes(record):
    return [one.code for one in findings_of(record)]


def test_a_network_that_learns_only_when_its_gradient_has_come_back_was_sick():
    (found,) = findings_of(run(200, stuck_until(200)))
    assert (found.code, found.when) == ("EG101", (0, 190))


def test_a_network_that_learns_all_the_while_was_not():
    assert codes(run(200, lambda step: 2.3 - 0.004 * step)) == []


@pytest.mark.parametrize(("share", "told"), [(0.15, []), (0.25, ["EG101"])])
def test_a_fifth_of_the_run_is_what_counts(share, told):
    until = int(400 * share)
    assert codes(run(until, stuck_until(until))) == told


def test_a_short_start_does_not_count_however_short_the_run():
    assert codes(run(40, stuck_until(40), steps=100)) == []


def test_nothing_is_said_where_nothing_was_learnt_afterwards_either():
    assert codes(run(200, lambda step: 2.3)) == []


def test_a_symptom_that_comes_later_and_goes_is_none():
    record = run(0, stuck_until(200))
    later = tuple(
        replace(one, layers=layers(6.0)) if 100 <= one.step < 200 and one.layers else one for one in record.readings
    )
    assert codes(Record(readings=later)) == []


def slowly(when, left):
    """Come down to a share of the loss within a hundred steps."""
    return lambda step: 2.3 if step < when else 2.3 * max(left, 1.0 - (1.0 - left) * (step - when) / 100)


@pytest.mark.parametrize(("left", "told"), [(0.53, ["EG101"]), (0.47, [])])
def test_of_a_run_that_ends_with_half_of_its_loss_left_a_tenth_counts(left, told):
    assert codes(run(40, slowly(40, left))) == told


@pytest.mark.parametrize(("until", "told"), [(40, ["EG101"]), (39, ["EG101"]), (30, [])])
def test_the_stretch_goes_to_the_first_silent_reading_and_is_a_tenth_of_the_run(until, told):
    assert codes(run(until, slowly(until, 0.6))) == told


@pytest.mark.parametrize(("steps", "told"), [(141, ["EG101"]), (140, [])])
def test_a_hundred_steps_have_to_follow(steps, told):
    assert codes(run(40, slowly(40, 0.6), steps=steps)) == told


@pytest.mark.parametrize(("until", "told"), [(25, ["EG101"]), (20, [])])
def test_less_than_25_steps_are_no_stretch(until, told):
    assert codes(run(until, slowly(until, 0.6), steps=200, every=5)) == told


@pytest.mark.parametrize("change", [{"complete": False}, {"source": "guard"}])
def test_of_a_run_that_goes_on_nobody_knows_what_it_will_miss(change):
    assert codes(replace(run(40, slowly(40, 0.6)), **change)) == []


def test_a_loss_that_comes_down_within_the_stretch_is_no_plateau():
    assert codes(run(40, slowly(0, 0.6))) == []
