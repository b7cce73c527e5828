"""A model that has learnt the little there is, and losses that take turns, are no faults; what is learnt by none is."""

import random
from math import log
from statistics import NormalDist

import pytest

from evengrad.diagnose import findings_of
from evengrad.diagnose._abstract import Sign
from evengrad.diagnose._signal import carries, level_of
from evengrad.diagnose._streams import of_all, streams, turns_of
from evengrad.nouns import Ends, Reading, Record, TensorReading

LOSS = ("ALL", "EG801", "EG802", "EG803", "EG804")
BESSEL = 256 / 255  # what the constant of a batch owes to its being fitted to it
SAMPLED = {*range(8), 40, 55, 96, 111, 192, 223, 254, 335, 366}


def tensor(name, shape, std=1.0):
    return TensorReading(name=name, dtype="float32", shape=shape, features=1, std=std, minimum=-3.0, maximum=3.0)


def ends(step, signal, error, constant=1.0, ops=("MseLoss",)):
    return Ends(
        output=tensor("output", (256, 1), 0.1),
        target=tensor("target", (256, 1)),
        loss_ops=ops,
        constant_loss=constant,
        signal=signal,
        signal_error=error,
    )


def run(loss, signal, *, error=0.006, steps=400, ops=lambda step: ("MseLoss",), seed=0):
    """A run of squared errors with targets of variance one; noise of the loss is that of its batch's constant."""
    drawn = random.Random(seed)
    readings = []
    for step in range(steps):
        noise = drawn.gauss(0.0, 0.02)
        seen = None
        if step in SAMPLED:
            value = None if signal(step) is None else signal(step) + drawn.gauss(0.0, error)
            seen = ends(step, value, error, 1.0 + noise, ops(step))
        readings.append(
            Reading(
                step=step, loss=loss(step) * BESSEL * (1.0 + noise + drawn.gauss(0.0, 0.002)), lrs=(1e-3,), ends=seen
            )
        )
    return Record(parameters=("w",), readings=tuple(readings), complete=True, source="log")


def codes(record):
    return {finding.code for finding in findings_of(record)} & set(LOSS)


def test_a_model_that_has_learnt_the_one_per_cent_there_is_is_not_told_as_not_learning():
    learning = run(lambda step: 0.995, lambda step: 0.0 if step < 30 else 0.01)
    assert level_of(learning).carries
    assert not level_of(learning).no_better
    assert codes(learning) == set()


def test_an_output_that_knows_nothing_carries_nothing_and_is_told():
    runs = [run(lambda step: 1.0, lambda step: 0.0, seed=seed) for seed in range(20)]
    assert not any(level_of(nothing).carries for nothing in runs)
    assert sum("EG804" in codes(nothing) for nothing in runs) >= 17  # by chance a loss is two errors below the constant


def test_without_a_signal_the_loss_alone_is_judged():
    old = run(lambda step: 1.0, lambda step: None)
    assert not level_of(old).carries
    assert "EG804" in codes(old)


def test_three_standard_errors_are_asked_for():
    # four to eight batches of the second half: their pooled error is a known share of one
    late = [step for step in SAMPLED if step >= 199.5]
    error = 0.06
    for sigmas, sees in ((2.5, False), (3.5, True)):
        level = sigmas * error / len(late) ** 0.5
        record = run(lambda step: 1.0, lambda step, level=level: level if step >= 199 else 0.0, error=error)
        exact = [
            one
            if one.ends is None
            else Reading(
                step=one.step, loss=one.loss, lrs=one.lrs, ends=ends(one.step, level if one.step > 199 else 0.0, error)
            )
            for one in record.readings
        ]
        record = Record(parameters=("w",), readings=tuple(exact), complete=True, source="log")
        assert carries(record, level_of(record)) is sees
    assert 1 - NormalDist().cdf(3.0) == pytest.approx(1 / 700, rel=0.1)


def test_what_has_vanished_below_a_thousandth_of_the_loss_is_no_signal():
    vanished = run(lambda step: 1.0, lambda step: 1e-9, error=1e-10)
    assert not level_of(vanished).carries
    assert "EG804" in codes(vanished)


def test_what_the_untrained_network_carried_by_chance_is_not_learnt():
    frozen = run(lambda step: 1.0, lambda step: 0.05)
    assert not level_of(frozen).carries
    assert "EG804" in codes(frozen)
    doubled = run(lambda step: 1.0, lambda step: 0.02 if step < 8 else 0.05)
    assert level_of(doubled).carries


def test_an_output_too_large_for_its_signal_has_not_learnt():
    wild = run(lambda step: 1.5, lambda step: 0.1 if step > 30 else 0.0)
    assert not level_of(wild).carries
    assert "EG804" in codes(wild)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_signal_that_is_no_number_is_left_out(broken):
    record = run(lambda step: 1.0, lambda step: broken)
    assert not level_of(record).carries


def falling(start, end, steps=400):
    return lambda step: end + (start - end) * 0.5 ** (step / (steps / 6))


@pytest.mark.parametrize("turns", [2, 3, 4])
def test_losses_that_take_turns_are_judged_each_by_itself(turns):
    easy, hard = falling(2.5, 0.5), falling(3.0, 2.2)
    record = run(lambda step: hard(step) if step % turns == 0 else easy(step), lambda step: None)
    assert turns_of(record) == turns
    parts = streams(record)
    assert [{one.step % turns for one in part.readings} for part in parts] == [{rest} for rest in range(turns)]
    assert codes(record) == set()


def test_a_noisy_loss_has_one_stream_whatever_the_draw():
    drawn, course = random.Random(0), falling(2.3, 0.4)
    for seed in range(50):
        record = run(lambda step: course(step) * (1.0 + drawn.gauss(0.0, 0.3)), lambda step: None, seed=seed)
        assert turns_of(record) == 1


def test_steps_that_are_too_long_are_no_turns_for_they_begin_to_alternate_later():
    growing = run(lambda step: 1.0 + (0.9 * (-1) ** step if step > 200 else 0.0), lambda step: None)
    assert turns_of(growing) == 1


def test_losses_of_several_forms_in_no_order_are_not_judged():
    drawn = random.Random(1)
    mixed = run(
        lambda step: log(10.0),
        lambda step: 0.0,
        ops=lambda step: ("MseLoss",) if drawn.random() < 0.5 else ("NllLoss", "LogSoftmax"),
    )
    assert streams(mixed) == ()
    assert codes(mixed) == set()


def test_a_fault_is_told_where_all_losses_have_it_and_only_there():
    record = run(lambda step: 3.0 if step % 2 else 1.0, lambda step: None)
    assert of_all(lambda part: Sign(decades=0.0, speaks=True), record).speaks
    assert not of_all(lambda part: Sign(decades=0.0, speaks=part.readings[0].step == 0), record).speaks
    assert of_all(lambda part: Sign(decades=0.0) if part.readings[0].step == 0 else None, record) is None
