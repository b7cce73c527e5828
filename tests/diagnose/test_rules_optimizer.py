"""Rules of optimizer and loop, on readings made by hand: where they speak, where not, and on the edge between."""

import itertools
import math
import random
from dataclasses import replace

import pytest
from made_readings import CONSTANT

from evengrad.diagnose import rules
from evengrad.diagnose._movement import intended_ratio, thinned, typical_ratio, way_of
from evengrad.nouns import ParameterReading, Reading, Record, Setup

BY_CODE = {rule.code: rule for rule in rules.ALL}
ADAM = Setup(optimizer="Adam", eps=1e-8, momentum=0.9, numels=(16,))
SGD = Setup(optimizer="SGD", numels=(16,))


def weight(**settings):
    return ParameterReading(
        **({"name": "a.weight", "numel": 16, "fan_in": 4, "weight_rms": 0.5, "grad_rms": 0.1} | settings)
    )


def run(steps, loss, weights, **settings):
    """A run whose loss and weights are functions of the step; its weights are seen at each."""
    readings = []
    for step in range(steps):
        found = weights(step)
        known = {"lrs": (0.1,), "grad_norms": (1.0,), "total_norm": 1.0} | settings.get("reading", {})
        known |= settings["each"](step) if "each" in settings else {}
        readings.append(Reading(step=step, loss=loss(step), weights=() if found is None else (found,), **known))
    record = {"parameters": ("a.weight",), "setup": SGD} | settings.get("record", {})
    return Record(readings=tuple(readings), **record)


def judge(code, *args, **settings):
    return BY_CODE[code].judge(run(*args, **settings))


def noisy(level, noise=0.01):
    """A loss that stays where it is, the same at every call."""
    return lambda step: level + noise * random.Random(step).gauss(0.0, 1.0)


def ratios(first, then=1e-3):
    """Weights whose first steps are as large as this, and the later ones small."""
    return lambda step: weight(update_ratio=first[step] if step < len(first) else then, moved_ratio=0.1)


# --- what the steps do ---


def test_a_way_is_measured_against_the_weights_at_its_start():
    sizes = [1.0, 1.5, 1.0, 0.5]  # goes from 1 to 1.5, back to 1 and to 0.5: three steps of 0.5
    steps = [0.5, -1 / 3, -0.5, 0.0]
    readings = [
        Reading(step=at, weights=(weight(weight_rms=size, update_ratio=abs(ratio), moved_ratio=abs(size - 1.0)),))
        for at, (size, ratio) in enumerate(zip(sizes, steps, strict=True))
    ]
    way = way_of(readings)
    assert way.steps == 3
    assert way.length == pytest.approx((0.5 + 0.5) / 2 + (0.5 + 0.5) / 2 + (0.5 + 0.0) / 2)  # the trapezoid rule
    assert way.distance == pytest.approx(0.5)
    assert way_of(readings[:2]) is None


@pytest.mark.parametrize(("shrink", "wanted"), [(1.0, 400.0), (0.9, 19.0), (0.5, 3.0)])
def test_steps_that_shrink_are_as_few_as_noise_of_their_sizes_tells(shrink, wanted):
    """The sum of a geometric series, squared, over the sum of its squares: (1 + shrink) / (1 - shrink)."""
    readings = [
        Reading(step=at, weights=(weight(update_ratio=0.01 * shrink**at, moved_ratio=0.01),)) for at in range(401)
    ]
    assert way_of(readings).full_steps == pytest.approx(wanted, rel=0.1)


def test_the_way_between_samples_is_filled_in():
    readings = [Reading(step=at, weights=(weight(update_ratio=0.01, moved_ratio=0.01 * at),)) for at in (0, 10, 100)]
    way = way_of(readings)
    assert (way.length, way.straightness) == (pytest.approx(1.0), pytest.approx(1.0))


def test_only_matrices_that_let_a_signal_through_have_a_ratio():
    left_out = [
        weight(fan_in=0, update_ratio=9.0),
        weight(weight_rms=0.0499, update_ratio=9.0),  # a gain of 0.0998
        weight(weight_rms=math.inf, update_ratio=9.0),
        weight(update_ratio=None),
        weight(update_ratio=math.nan),
    ]
    kept = [weight(update_ratio=one) for one in (0.1, 0.2, 0.4)]
    assert typical_ratio(Reading(weights=(*left_out, *kept))) == 0.2
    assert typical_ratio(Reading(weights=tuple(left_out))) is None


def test_the_arithmetic_of_a_step_is_that_of_its_optimizer():
    reading = Reading(lrs=(0.01, 0.001), scale=0.5, weights=(weight(weight_rms=0.5, grad_rms=0.1),))
    assert intended_ratio(reading, ADAM) == pytest.approx(0.01 / 0.5)
    assert intended_ratio(reading, SGD) == pytest.approx(0.01 * 0.5 * 0.1 / 0.5)
    assert intended_ratio(reading, replace(SGD, momentum=0.9)) == pytest.approx(10 * 0.01 * 0.5 * 0.1 / 0.5)
    assert intended_ratio(replace(reading, lrs=()), SGD) is None


def test_of_a_long_run_the_first_readings_and_an_even_share_are_taken():
    readings = [Reading(step=step) for step in range(100_000)]
    chosen = [one.step for one in thinned(readings)]
    assert chosen[:16] == list(range(16))
    assert chosen[-1] == 99_999
    assert len(chosen) == 64
    assert thinned(readings[:64]) == tuple(readings[:64])


# --- EG601 ---


@pytest.mark.parametrize(
    ("first", "speaks"),
    [
        ([1.0], True),
        ([0.98], False),
        ([0.101] * 10, True),  # ten steps together
        ([0.099] * 10, False),
        ([0.099] * 10 + [1.0], False),  # a single large step later on is a spike
        ([0.31] * 30, True),
        ([0.01] * 10 + [0.29] * 50, False),
        ([0.01] * 10 + [0.31] * 24, False),  # fewer than half of the steps from the first on
        ([0.01] * 10 + [0.31] * 26, True),
    ],
)
def test_a_step_is_too_large_where_it_replaces_the_weights_or_where_half_of_them_forget(first, speaks):
    seen = judge("EG601", 60, noisy(1.0), ratios(first))
    assert seen.speaks == speaks
    assert seen.where == (("optimizer",) if speaks else ())


def test_large_steps_at_which_the_loss_falls_are_not_told():
    falls = [math.exp(-step / 10) for step in range(60)]
    assert judge("EG601", 60, lambda step: falls[step], ratios([2.0])).speaks is False
    assert judge("EG601", 60, lambda step: 1.0 + falls[step], ratios([0.4] * 60)).speaks is False
    assert judge("EG601", 60, lambda step: 2.0 - falls[step], ratios([2.0])).speaks is True


def test_large_steps_are_dated_from_the_first_to_the_last_of_them():
    seen = judge("EG601", 60, noisy(1.0), ratios([0.09, 0.5, 3.0, 0.4]))
    assert seen.when == (1, 3)
    assert seen.decades == pytest.approx(1.0)
    assert "the step at 1 is 0.5 times as large as the weights" in seen.message
    assert "the largest 3 times" in seen.message


def test_a_loss_that_overflows_after_large_steps_is_told_however_short_the_run():
    losses = [1.0, 1e3, 1e9, math.nan]
    assert "not finite" in judge("EG601", 4, lambda step: losses[step], ratios([2.0, 9.0])).message
    assert judge("EG601", 4, lambda step: losses[step], ratios([0.1, 0.1])).speaks is False
    norms = [{"total_norm": one} for one in (1.0, 1e9, math.inf)]
    assert judge("EG601", 3, lambda _: None, ratios([2.0]), each=lambda step: norms[step]).speaks is True


def test_a_loss_that_comes_down_to_a_constant_after_large_steps_has_learnt_nothing():
    losses = lambda step: 50.0 if step < 3 else math.log(2) + 0.01 * random.Random(step).gauss(0.0, 1.0)  # noqa: E731
    known = {"reading": {"ends": CONSTANT}}
    assert "best constant prediction" in judge("EG601", 80, losses, ratios([2.0] * 3), **known).message
    assert judge("EG601", 80, losses, ratios([2.0] * 3)).speaks is False  # nobody knows what a constant has


def test_without_a_loss_or_without_weights_large_steps_cannot_be_judged():
    assert judge("EG601", 60, lambda _: None, ratios([2.0])) is None
    assert judge("EG601", 60, noisy(1.0), lambda _: None) is None
    assert judge("EG601", 5, noisy(1.0), ratios([2.0])) is None


# --- EG602 ---


def straight(ratio=1e-4, zigzag=1.0):
    """Weights that go the same way at every step, but for a share of the length that is lost in zigzag."""
    return lambda step: weight(update_ratio=ratio, moved_ratio=ratio * step * zigzag)


def falling(steps, share, level=1.0):
    return lambda step: level * (1.0 - share * step / steps)


UNTRAINED = {"ends": replace(CONSTANT, constant_loss=0.7)}  # losses around 1 have all of it to gain


@pytest.mark.parametrize(("zigzag", "speaks"), [(0.91, True), (0.89, False)])
def test_a_learning_rate_is_too_low_where_the_way_is_straight_to_a_tenth(zigzag, speaks):
    seen = judge("EG602", 100, falling(100, 0.1), straight(zigzag=zigzag), reading=UNTRAINED)
    assert seen.speaks == speaks
    assert ("straight to 91%" in seen.message) == speaks


@pytest.mark.parametrize(("zigzag", "speaks"), [(1.09, True), (1.11, False)])
def test_a_distance_that_is_longer_than_its_way_is_not_believed(zigzag, speaks):
    assert judge("EG602", 100, falling(100, 0.01), straight(zigzag=zigzag)).speaks == speaks


@pytest.mark.parametrize(("ratio", "speaks"), [(0.099, True), (0.101, False)])
def test_steps_of_a_tenth_of_the_weights_are_not_too_small(ratio, speaks):
    assert judge("EG602", 100, falling(100, 0.01), straight(ratio)).speaks == speaks


@pytest.mark.parametrize(("share", "speaks"), [(0.19, True), (0.26, False)])
def test_a_loss_that_comes_down_by_more_than_a_fifth_is_learnt(share, speaks):
    assert judge("EG602", 100, falling(100, share), straight(), reading=UNTRAINED).speaks == speaks


@pytest.mark.parametrize(("share", "speaks"), [(0.019, True), (0.026, False)])
def test_where_no_constant_is_known_nobody_knows_how_much_there_is_to_gain(share, speaks):
    assert judge("EG602", 100, falling(100, share), straight()).speaks == speaks


def test_of_a_run_that_goes_on_nobody_knows_how_long_it_is_meant_to_be():
    for settings in ({"source": "guard"}, {"complete": False}):
        record = {"record": {"setup": SGD, **settings}}
        known = record | {"reading": UNTRAINED}
        assert judge("EG602", 200, falling(200, 0.1), straight(), **known).speaks is False
        assert judge("EG602", 200, falling(200, 0.01), straight(), **known).speaks is True


@pytest.mark.parametrize(("steps", "speaks"), [(50, True), (49, None)])
def test_fifty_steps_are_needed(steps, speaks):
    seen = judge("EG602", steps, falling(steps, 0.01), straight())
    assert (seen if seen is None else seen.speaks) == speaks


@pytest.mark.parametrize(("steps", "momentum", "speaks"), [(199, 0.9, None), (201, 0.9, True), (399, 0.95, None)])
def test_a_momentum_asks_for_twenty_times_its_memory(steps, momentum, speaks):
    record = {"setup": Setup(optimizer="SGD", momentum=momentum)}
    seen = judge("EG602", steps, falling(steps, 0.01), straight(), record=record)
    assert (seen if seen is None else seen.speaks) == speaks
    assert judge("EG602", 150, falling(150, 0.1), straight(), record={"setup": None}) is None


def test_a_loss_that_has_flattened_or_does_not_move_is_another_matter():
    flattened = lambda step: 1.0 - 0.01 * min(step, 50) / 50  # noqa: E731
    assert judge("EG602", 100, flattened, straight()).speaks is False
    slower = lambda step: 0.99 + 0.01 * (1.0 - step / 100) ** 3  # noqa: E731
    assert judge("EG602", 100, slower, straight()).speaks is False
    assert judge("EG602", 100, noisy(1.0), straight()).speaks is False
    assert judge("EG602", 100, falling(100, -0.1), straight()).speaks is False


def test_a_loss_at_that_of_a_constant_is_not_asked_to_fall():
    known = {"reading": {"ends": CONSTANT}}
    assert judge("EG602", 100, noisy(math.log(2), 1e-3), straight(), **known).speaks is True
    low = {"reading": {"ends": replace(CONSTANT, constant_loss=3.0)}}
    assert judge("EG602", 100, falling(100, 0.1, math.log(2)), straight(), **low).speaks is False


def test_a_warm_up_and_a_schedule_that_has_hardly_begun_are_not_judged():
    rising = {"each": lambda step: {"lrs": (1e-5 * (step + 1),)}}
    assert judge("EG602", 200, falling(200, 0.01), straight(), **rising).speaks is False
    assert judge("EG602", 200, falling(200, 0.01), straight()).speaks is True
    late = {"each": lambda step: {"lrs": (1e-6 if step < 80 else 1e-2,)}}
    assert judge("EG602", 100, falling(100, 0.01), straight(), **late).speaks is False


def test_weights_that_only_decay_go_straight_and_are_not_told():
    def decays(step):
        return weight(weight_rms=0.5 * (1 - step / 200), update_ratio=1 / (200 - step), moved_ratio=step / 200)

    record = {"setup": Setup(optimizer="SGD", weight_decay=0.1)}
    assert judge("EG602", 100, falling(100, 0.01), decays, record=record).speaks is False
    assert judge("EG602", 100, falling(100, 0.01), decays).speaks is True


@pytest.mark.parametrize(("memory", "speaks"), [(1e9, True), (8.0, False)])
def test_large_steps_that_end_with_the_gradient_go_straight_and_are_not_too_small(memory, speaks):
    """A network that its first steps have broken has no gradient any more; what comes after is no part of the way."""
    way = list(itertools.accumulate((0.03 * math.exp(-step / memory) for step in range(300)), initial=0.0))
    broken = lambda step: weight(update_ratio=0.03 * math.exp(-step / memory), moved_ratio=way[step])  # noqa: E731
    sign = judge("EG602", 300, noisy(math.log(2)), broken, reading={"ends": CONSTANT}, record={"setup": ADAM})
    assert sign.speaks is speaks


@pytest.mark.parametrize(("first", "speaks"), [(1e-6, True), (0.05, False)])
def test_steps_below_float32_after_large_ones_are_those_of_a_lost_gradient(first, speaks):
    def broken(step):
        size = first if step < 5 else 0.0
        return weight(update_ratio=size, moved_ratio=first * min(step, 5), grad_rms=size + 1e-9)

    known = {"ends": CONSTANT, "lrs": (0.5,)}
    sign = judge("EG602", 300, noisy(math.log(2), 1e-3), broken, reading=known)
    assert bool(sign and "float32" in sign.message) is speaks


def rounded(step):
    return weight(update_ratio=0.0, moved_ratio=0.0, still_frac=1.0)


@pytest.mark.parametrize(("lr", "speaks"), [(2.9e-8, True), (3.1e-8, False)])
def test_a_rate_below_what_float32_resolves_is_told_for_adam(lr, speaks):
    """2^-24 of 0.5 is 2.98e-8."""
    settings = {"reading": {"lrs": (lr,)}, "record": {"setup": ADAM}}
    seen = judge("EG602", 200, noisy(1.0), rounded, **settings)
    assert bool(seen and seen.speaks) == speaks
    assert ("float32" in seen.message) if speaks else seen is None


def test_plain_descent_has_small_steps_at_a_minimum_too():
    settings = {"reading": {"lrs": (1e-9,)}}
    assert judge("EG602", 100, noisy(1.0), rounded, **settings) is None
    at_constant = {"reading": {"lrs": (1e-9,), "ends": CONSTANT}}
    assert judge("EG602", 100, noisy(math.log(2), 1e-3), rounded, **at_constant).speaks is True


def test_without_a_loss_only_adam_can_be_told_to_stand_still():
    settings = {"reading": {"lrs": (1e-10,)}, "record": {"setup": ADAM}}
    assert judge("EG602", 200, lambda _: None, rounded, **settings).speaks is True
    assert judge("EG602", 200, lambda _: None, straight()) is None
