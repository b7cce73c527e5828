"""Steps that are too large after the beginning, rates that die, losses without a level: on both sides of each edge."""

import math
import random
from dataclasses import replace

import pytest

from evengrad.diagnose import findings_of, rules
from evengrad.diagnose._trend import trend_of
from evengrad.diagnose._wording import figures
from evengrad.nouns import Ends, ParameterReading, Reading, Record, Setup, TensorReading

BY_CODE = {rule.code: rule for rule in rules.ALL}
SGD = Setup(optimizer="SGD", numels=(16,))
CONSTANT = Ends(
    output=TensorReading(name="output", shape=(64, 2), features=2),
    target=TensorReading(name="target", dtype="int64", shape=(64,), minimum=0.0, maximum=1.0),
    loss_ops=("NllLoss", "LogSoftmax"),
    softmax_size=2,
    constant_loss=math.log(2),
)


def run(steps, loss, *, ratio=lambda _: 1e-3, lr=lambda _: 0.1, ends=CONSTANT, weight=None, **settings):
    """A run whose loss, step sizes and rates are functions of the step."""
    shape = {"name": "a.weight", "numel": 16, "fan_in": 4, "weight_rms": 0.5, "grad_rms": 0.1} | (weight or {})
    readings = []
    for step in range(steps):
        known = ParameterReading(**({"update_ratio": ratio(step), "moved_ratio": 0.1} | shape))
        readings.append(Reading(step=step, loss=loss(step), lrs=(lr(step),), weights=(known,), ends=ends))
    return Record(readings=tuple(readings), **({"parameters": ("a.weight",), "setup": SGD} | settings))


def noisy(level, noise=0.01):
    return lambda step: level + noise * random.Random(step).gauss(0.0, 1.0)


def judge(code, *args, **settings):
    return BY_CODE[code].judge(run(*args, **settings))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (4.14083377e35, "4.14e+35"),
        (69026262.16, "6.9e+07"),
        (1.0, "1.00"),
        (1037.0, "1040"),
        (414.4, "414"),
        (0.00012344, "0.000123"),
        (-2.5, "-2.5"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_a_number_in_a_message_has_three_figures_and_no_row_of_digits(number, text):
    assert figures(number) == text


# --- EG601: large steps after the beginning ---


@pytest.mark.parametrize("start", [0, 3, 20])
@pytest.mark.parametrize(("size", "speaks"), [(0.11, True), (0.09, False)])
def test_ten_steps_that_replace_the_weights_are_told_wherever_they_are_and_however_small_the_later_ones(
    start, size, speaks
):
    sign = judge("EG601", 60, noisy(math.log(2)), ratio=lambda step: size if start <= step < start + 10 else 1e-7)
    assert sign.speaks == speaks
    assert not speaks or sign.when == (start, start + 9)


def test_two_large_steps_that_are_far_apart_do_not_add_up():
    assert not judge("EG601", 60, noisy(math.log(2)), ratio=lambda step: 0.9 if step in {15, 25} else 1e-7).speaks
    assert judge("EG601", 60, noisy(math.log(2)), ratio=lambda step: 0.9 if step in {16, 25} else 1e-7).speaks


@pytest.mark.parametrize(("end", "speaks"), [(0.3, False), (1.0, False), (2.0, True)])
def test_a_run_that_keeps_what_it_had_learnt_has_come_to_no_harm_by_late_large_steps(end, speaks):
    def loss(step):
        return noisy(2.0 if step < 5 else 0.3 if step < 30 else end, 0.001)(step)

    sign = judge("EG601", 60, loss, ratio=lambda step: 1.5 if step == 30 else 1e-3, ends=None)
    assert sign.speaks == speaks


@pytest.mark.parametrize(("factor", "told"), [(11.0, True), (9.0, False)])
def test_a_rate_that_has_jumped_tenfold_before_large_steps_is_their_cause(factor, told):
    sign = judge(
        "EG601",
        60,
        noisy(math.log(2)),
        ratio=lambda step: 0.5 if 40 <= step < 45 else 1e-3,
        lr=lambda step: 0.001 * factor if step >= 38 else 0.001,
    )
    assert sign.speaks
    assert ("jumps at step 38, from 0.001 to 0.011" in sign.cause) == told
    assert sign.when[0] == (38 if told else 40)


def test_a_rate_that_begins_at_nearly_nothing_is_a_warm_up_and_no_jump():
    sign = judge("EG601", 60, noisy(math.log(2)), ratio=lambda _: 0.5, lr=lambda step: min(1e-6 * 20**step, 1.0))
    assert sign.speaks
    assert sign.cause == ""


# --- EG803: when what was learnt is given back ---


def test_a_run_that_gives_back_what_it_had_learnt_is_dated_by_its_rise_and_not_by_its_start():
    def loss(step):
        return noisy(0.69 if step < 10 else 0.05 if step < 150 else 0.75, 0.002)(step)

    sign = judge("EG803", 300, loss)
    assert sign.speaks
    assert sign.when == (150, 299)


# --- EG602: runs that are over and have gone nowhere, and schedules that have died ---


def test_a_rate_that_was_held_for_a_step_is_no_measure_for_the_others():
    def full_steps(count):
        return trend_of(run(300, noisy(1.0), lr=lambda step: 50.0 if 50 <= step < 50 + count else 0.05)).full_steps

    assert full_steps(6) == pytest.approx(300.0)
    assert full_steps(7) == pytest.approx(7 + 293 / 1000)  # more than 2 % of the run


@pytest.mark.parametrize(
    ("schedule", "died"),
    [
        (lambda step: 0.1 ** (step // 10), 40),
        (lambda _: 0.0, 0),
        (lambda step: 1.0 if step < 149 else 0.0, 149),
        (lambda step: 1.0 if step < 151 else 0.0, None),
        (lambda step: 1.0 if step < 10 or step == 299 else 0.0, None),
        (lambda step: 0.5 + 0.5 * math.cos(math.pi * step / 299), None),
        (lambda step: 1.0 - step / 300, None),
        (lambda step: 0.1 ** (step // 75), None),
        (lambda step: 1e-9 * (step + 1), None),
        (lambda step: min(step / 90, (300 - step) / 210) ** 2 + 1e-6, None),
    ],
)
def test_a_schedule_has_died_where_more_than_half_of_the_run_is_below_a_thousandth(schedule, died):
    assert trend_of(run(300, noisy(1.0), lr=schedule)).rate_died == died


@pytest.mark.parametrize(("until", "speaks"), [(61, True), (63, False)])
def test_a_schedule_that_has_died_in_the_first_fifth_is_told_if_nothing_was_learnt(until, speaks):
    dead = {"lr": lambda step: 0.1 if step < until - 1 else 0.0}
    sign = judge("EG602", 300, noisy(math.log(2)), **dead)
    assert sign.speaks == speaks
    assert not speaks or (sign.when[0] == until - 1 and "below a thousandth" in sign.message)
    assert not judge("EG602", 300, lambda step: noisy(math.log(2))(step) * (1 - 0.001 * min(step, 200)), **dead).speaks
    assert not judge("EG602", 300, noisy(math.log(2)), **dead, source="guard").speaks
    assert not judge("EG602", 300, noisy(math.log(2)), **dead, complete=False).speaks


def test_a_rate_of_zero_is_told_though_no_step_was_seen_to_move_anything():
    sign = judge("EG602", 300, noisy(math.log(2)), ratio=lambda _: 0.0, lr=lambda _: 0.0)
    assert sign.speaks
    assert "the learning rate is 0 in the last 300 of 300 steps" in sign.message


def zigzag(size):
    """Steps of this ratio that are far from a straight line."""
    return {"ratio": lambda _: size, "weight": {"moved_ratio": 3 * size}}


@pytest.mark.parametrize(("size", "speaks"), [(3.3e-5, True), (3.4e-5, False)])
def test_all_steps_of_a_run_together_must_be_a_hundredth_of_the_weights(size, speaks):
    assert judge("EG602", 300, noisy(math.log(2)), **zigzag(size)).speaks == speaks


def test_a_warm_up_that_has_not_ended_with_the_run_is_told():
    warm = {**zigzag(1e-6), "lr": lambda step: 1e-9 * (step + 1)}
    assert "still rising" in judge("EG602", 300, noisy(math.log(2)), **warm).message
    assert not judge("EG602", 300, noisy(math.log(2)), **warm, source="guard").speaks
    assert not judge("EG602", 300, noisy(math.log(2)), **(warm | zigzag(1e-3))).speaks


@pytest.mark.parametrize(("rms", "speaks"), [(1 / (3 * 64) ** 0.5, True), (0.1, False)])
def test_without_a_constant_weights_as_drawn_tell_that_there_is_something_to_gain(rms, speaks):
    tiny = {**zigzag(1e-6), "ends": None}
    tiny["weight"] = tiny["weight"] | {"numel": 4096, "fan_in": 64, "weight_rms": rms}
    sign = judge("EG602", 300, noisy(1e-8, 1e-10), **tiny)
    assert sign.speaks == speaks


def test_steps_that_half_precision_rounds_away_are_left_to_the_rule_about_them():
    tiny = zigzag(1e-6)
    tiny["weight"] = tiny["weight"] | {"dtype": "bfloat16", "still_frac": 0.95}
    assert not judge("EG602", 300, noisy(math.log(2)), **tiny).speaks
    assert judge("EG607", 300, noisy(math.log(2)), **tiny).speaks
    tiny["weight"] = tiny["weight"] | {"still_frac": 0.85}
    assert judge("EG602", 300, noisy(math.log(2)), **tiny).speaks


# --- EG804: what it says of the steps, and of a run that goes on ---


def test_a_run_that_goes_on_is_warned_of_and_one_that_is_over_has_failed():
    course = {"ratio": lambda _: 0.01}
    assert judge("EG804", 300, noisy(math.log(2)), **course).severity == "critical"
    assert judge("EG804", 300, noisy(math.log(2)), **course, source="guard").severity == "warning"
    assert judge("EG804", 199, noisy(math.log(2)), **course, source="guard") is None


@pytest.mark.parametrize(
    ("course", "said"),
    [
        ({"lr": lambda _: 0.0, "ratio": lambda _: 0.0}, "a learning rate of 0"),
        ({"ratio": lambda _: 2e-5}, "steps that are too short: all 299 together are 0.00598"),
        ({"ratio": lambda _: 1e-2}, ""),
    ],
)
def test_the_data_are_not_blamed_where_the_steps_are_next_to_nothing(course, said):
    record = run(300, noisy(math.log(2)), **course)
    assert BY_CODE["EG804"].judge(record).cause.startswith(said)
    others = frozenset(BY_CODE) - {"EG804"}
    (alone,) = findings_of(record, ignore=others)
    assert ("look at the data" in alone.message) == (said == "")


# --- EG804: all losses where the sampled batches are too few; EG606: until the first decade is lost ---


@pytest.mark.parametrize(("level", "speaks"), [(1.04, True), (0.965, False)])
def test_all_losses_are_asked_where_the_sampled_batches_are_too_few_to_be_sure(level, speaks):
    record = run(400, lambda step: math.log(2) * noisy(level, 0.1)(step), ratio=lambda _: 0.01)
    few = [one if one.step % 50 == 0 else replace(one, ends=None) for one in record.readings]
    assert BY_CODE["EG804"].judge(replace(record, readings=tuple(few))).speaks == speaks


@pytest.mark.parametrize(("faster", "speaks"), [(1.0, True), (2.5, True), (4.0, False)])
def test_weights_that_rest_at_their_floor_shrank_as_the_decay_says_until_the_first_decade_was_lost(faster, speaks):
    record = run(400, noisy(math.log(2)), setup=replace(SGD, weight_decay=1.0))
    readings = [
        replace(one, weights=(replace(one.weights[0], weight_rms=max(0.5 * 0.9 ** (faster * one.step), 1e-8)),))
        for one in record.readings
    ]
    sign = BY_CODE["EG606"].judge(replace(record, readings=tuple(readings)))
    assert sign.speaks == speaks
    assert not speaks or "where the decay alone would take" in sign.message
