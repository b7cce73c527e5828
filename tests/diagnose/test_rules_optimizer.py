"""Rules of optimizer and loop, on readings made by hand: where they speak, where not, and on the edge between."""

import math
import random
import time
from dataclasses import replace

import pytest

from evengrad.diagnose import rules
from evengrad.diagnose._movement import intended_ratio, thinned, typical_ratio, way_of
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, Record, Setup, TensorReading

BY_CODE = {rule.code: rule for rule in rules.ALL}
RUN_RULES = ("EG601", "EG602", "EG603", "EG604", "EG605", "EG606", "EG607", "EG608")
ADAM = Setup(optimizer="Adam", eps=1e-8, momentum=0.9, numels=(16,))
SGD = Setup(optimizer="SGD", numels=(16,))
# A cross entropy of two classes that are as frequent: the best constant has log 2.
CONSTANT = Ends(
    output=TensorReading(name="output", shape=(64, 2), features=2),
    target=TensorReading(name="target", dtype="int64", shape=(64,)),
    loss_ops=("NllLoss", "LogSoftmax"),
    softmax_size=2,
    constant_loss=math.log(2),
)


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
    assert judge("EG602", 100, noisy(1.0), straight()).speaks is False
    assert judge("EG602", 100, falling(100, -0.1), straight()).speaks is False


def test_a_loss_at_that_of_a_constant_is_not_asked_to_fall():
    known = {"reading": {"ends": CONSTANT}}
    assert judge("EG602", 100, noisy(math.log(2), 1e-3), straight(), **known).speaks is True
    low = {"reading": {"ends": replace(CONSTANT, constant_loss=3.0)}}
    assert judge("EG602", 100, falling(100, 0.1, math.log(2)), straight(), **low).speaks is False


def test_a_warm_up_and_a_schedule_that_has_hardly_begun_are_not_judged():
    rising = {"each": lambda step: {"lrs": (1e-5 * (step + 1),)}}
    assert judge("EG602", 100, falling(100, 0.1), straight(), **rising).speaks is False
    late = {"each": lambda step: {"lrs": (1e-6 if step < 80 else 1e-2,)}}
    assert judge("EG602", 100, falling(100, 0.1), straight(), **late).speaks is False


def test_weights_that_only_decay_go_straight_and_are_not_told():
    def decays(step):
        return weight(weight_rms=0.5 * (1 - step / 200), update_ratio=1 / (200 - step), moved_ratio=step / 200)

    record = {"setup": Setup(optimizer="SGD", weight_decay=0.1)}
    assert judge("EG602", 100, falling(100, 0.01), decays, record=record).speaks is False
    assert judge("EG602", 100, falling(100, 0.01), decays).speaks is True


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


# --- EG603 ---


def leftovers(*found):
    return Record(readings=tuple(Reading(step=step, leftover=one) for step, one in enumerate(found)))


@pytest.mark.parametrize(
    ("found", "speaks"),
    [
        ((False, True, True), True),
        ((None, True, None, True, None), True),
        ((False, True), False),
        ((True,), False),
        ((True, True, False), False),
        ((True, True, False, True), False),
        ((True, False, True, True), True),
        ((False, False), False),
        ((None, None), None),
    ],
)
def test_zero_grad_is_forgotten_where_the_last_two_looks_show_it(found, speaks):
    seen = BY_CODE["EG603"].judge(leftovers(*found))
    assert (seen if seen is None else seen.speaks) == speaks


def test_a_forgotten_zero_grad_is_a_mistake_in_the_code():
    seen = BY_CODE["EG603"].judge(leftovers(False, True, None, True))
    assert seen.cause.startswith("a mistake in the code: call optimizer.zero_grad()")
    assert seen.when == (1, 3)
    assert seen.severity == "critical"
    assert "at 2 of 3 steps that were looked at" in seen.message


# --- EG604 ---


def clipped(scale, ratio=1e-5, acting=1.0, setup=SGD, steps=100):
    each = lambda step: {"scale": scale if step < acting * steps else 1.0}  # noqa: E731
    return judge("EG604", steps, noisy(1.0), ratios([], ratio), each=each, record={"setup": setup})


@pytest.mark.parametrize(
    ("settings", "speaks"),
    [
        ({"scale": 0.1}, True),
        ({"scale": 0.11}, False),
        ({"scale": 0.01, "acting": 0.95}, True),
        ({"scale": 0.01, "acting": 0.94}, False),
        ({"scale": 0.01, "ratio": 0.99e-3}, True),
        ({"scale": 0.01, "ratio": 1.01e-3}, False),  # a hundred steps go a tenth of the weights
        ({"scale": 0.01, "steps": 49}, None),
        ({"scale": 0.01, "setup": None}, None),
        ({"scale": 0.01, "setup": Setup()}, None),
        ({"scale": 0.01, "setup": ADAM}, False),  # the scale of the gradient cancels
        ({"scale": 3.9e-8, "setup": ADAM}, True),  # an element has 1 / 4 of the norm
        ({"scale": 4.1e-8, "setup": ADAM}, False),
        ({"scale": 0.0}, False),
    ],
)
def test_clipping_throttles_where_nearly_all_is_clipped_and_nothing_moves(settings, speaks):
    seen = clipped(**settings)
    assert (seen if seen is None else seen.speaks) == speaks


def test_a_throttled_run_is_told_how_far_below_the_norm_its_threshold_is():
    assert clipped(0.01).cause == "a clipping threshold 1e+02 times below the usual gradient norm: raise it"
    assert judge("EG604", 100, noisy(1.0), lambda _: None, reading={"scale": 0.01}) is None


# --- EG605 ---


def drowned(norms, eps=1e-3, setup=ADAM, numels=(16,), **settings):
    each = lambda step: {"grad_norms": norms(step)} | settings  # noqa: E731
    return judge("EG605", 20, noisy(1.0), rounded, each=each, record={"setup": replace(setup, eps=eps, numels=numels)})


@pytest.mark.parametrize(("size", "speaks"), [(0.99e-4, True), (1.01e-4, False)])
def test_epsilon_drowns_gradients_below_a_tenth_of_it(size, speaks):
    seen = drowned(lambda _: (4 * size,))
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(1.0 if speaks else 0.0, abs=0.01)


def test_most_parameters_count_and_those_without_a_gradient_do_not():
    tiny, fine = 1e-9, 1.0
    assert drowned(lambda _: (tiny, tiny, fine), numels=(1, 1, 1)).speaks is True
    assert drowned(lambda _: (tiny, fine), numels=(1, 1)).speaks is False
    assert drowned(lambda _: (0.0, 0.0, fine), numels=(1, 1, 1)).speaks is False
    assert drowned(lambda _: (0.0, 0.0), numels=(1, 1)) is None


def test_gradients_that_become_small_have_converged():
    assert drowned(lambda step: (1.0 if step < 3 else 1e-9,)).speaks is False
    assert drowned(lambda step: (1e-9 if step < 10 else 1.0,)).speaks is False


def test_clipping_makes_gradients_smaller_before_epsilon_does():
    assert drowned(lambda _: (1.0,), scale=1e-6).speaks is True
    assert drowned(lambda _: (1.0,)).speaks is False


@pytest.mark.parametrize("optimizer", ["SGD", "", "Adafactor", "AdamW + SGD"])
def test_optimizers_without_such_an_epsilon_are_not_judged(optimizer):
    assert drowned(lambda _: (1e-9,), setup=Setup(optimizer=optimizer)) is None
    assert drowned(lambda _: (1e-9,), eps=None) is None


# --- EG606 ---


def shrinking(decades, steps=100, **settings):
    """Weights that lose so many decades; the decay of 0.1 at a rate of 0.1 alone takes 0.43 in a hundred steps."""
    course = lambda step: weight(weight_rms=0.5 * 10 ** (-decades * step / (steps - 1)))  # noqa: E731
    known = {"record": {"setup": Setup(optimizer="SGD", weight_decay=0.25)}} | settings
    return judge("EG606", steps, known.pop("loss", noisy(1.0)), course, **known)


@pytest.mark.parametrize(("decades", "speaks"), [(1.01, True), (0.99, False)])
def test_weights_collapse_where_they_shrink_tenfold_as_the_decay_predicts(decades, speaks):
    seen = shrinking(decades)
    assert seen.speaks == speaks
    assert seen.decades == pytest.approx(decades)
    assert seen.where == (("a.weight",) if speaks else ())


@pytest.mark.parametrize(("decay", "speaks"), [(0.0, None), (0.14, False), (0.16, True), (1.3, True), (1.5, False)])
def test_what_the_decay_does_not_predict_has_another_cause(decay, speaks):
    """Two decades in 99 steps: a decay of 0.465 at a rate of 0.1."""
    seen = shrinking(2.0, record={"setup": Setup(optimizer="SGD", weight_decay=decay)})
    assert (seen if seen is None else seen.speaks) == speaks


def test_adam_normalises_a_decay_that_is_added_to_the_gradient():
    for optimizer, speaks in (("Adam", True), ("AdamW", False)):
        assert shrinking(2.0, record={"setup": Setup(optimizer=optimizer, weight_decay=1e-2)}).speaks == speaks


def test_weights_that_shrink_while_the_loss_falls_are_fine():
    assert shrinking(2.0, loss=falling(100, 0.3)).speaks is False
    at_constant = lambda step: math.log(2) * (1.5 if step < 5 else 1.0) + 1e-3 * random.Random(step).gauss(0, 1)  # noqa: E731
    assert shrinking(2.0, loss=at_constant, reading={"ends": CONSTANT}).speaks is True
    assert shrinking(2.0, loss=lambda _: None) is None


@pytest.mark.parametrize(
    ("rate", "level", "left", "speaks"),
    [
        (0.021, 0.6, 0.45, True),
        (0.019, 0.6, 0.45, False),  # a memory of more than fifty steps
        (0.021, 0.4, 0.45, False),  # learns in spite of it
        (0.021, 0.6, 0.6, False),  # is not held down
    ],
)
def test_a_decay_that_forgets_within_fifty_steps_is_told_where_little_is_learnt(rate, level, left, speaks):
    """Weights that fall to an equilibrium within twenty steps and stay there."""
    course = lambda step: weight(weight_rms=0.5 * max(left, 1 - step / 20))  # noqa: E731
    loss = lambda step: level * math.log(2) * (1 + max(0.0, 1 - step / 20)) + 1e-3 * random.Random(step).gauss(0, 1)  # noqa: E731
    settings = {"record": {"setup": Setup(optimizer="AdamW", weight_decay=10.0)}}
    settings["reading"] = {"ends": CONSTANT, "lrs": (rate / 10,)}
    seen = judge("EG606", 250, loss, course, **settings)
    assert seen.speaks == speaks
    assert ("of the weights, which are held at 0.45 of their size" in seen.message) == speaks


def test_weights_that_shrink_at_once_and_then_stay_are_not_collapsing():
    course = lambda step: weight(weight_rms=0.5 if step < 10 else 0.01)  # noqa: E731
    record = {"setup": Setup(optimizer="SGD", weight_decay=0.4)}
    assert judge("EG606", 100, noisy(1.0), course, record=record).speaks is False


# --- EG607 ---


def standing(still, dtype="bfloat16", loss=None, steps=60, **settings):
    course = lambda step: weight(still_frac=still(step), dtype=dtype)  # noqa: E731
    return judge("EG607", steps, loss or noisy(1.0), course, **settings)


@pytest.mark.parametrize(("frac", "speaks"), [(0.9, True), (0.89, False)])
def test_weights_stand_still_from_nine_in_ten_on(frac, speaks):
    seen = standing(lambda _: frac)
    assert seen.speaks == speaks
    assert (seen.where == ("a.weight",)) == speaks
    assert seen.cause.startswith("weights kept in bfloat16: keep them in float32") == speaks


def test_without_a_loss_nearly_all_have_to_stand_still():
    assert standing(lambda _: 0.98, loss=lambda _: None).speaks is False
    assert standing(lambda _: 1.0, loss=lambda _: None).speaks is True


def test_nine_in_ten_of_the_steps_have_to_show_it():
    assert standing(lambda step: 1.0 if step >= 6 else 0.0).speaks is True
    assert standing(lambda step: 1.0 if step >= 7 else 0.0).speaks is False


def test_a_loss_that_falls_shows_that_enough_gets_through():
    assert standing(lambda _: 0.99, loss=falling(60, 0.3)).speaks is False
    assert standing(lambda _: 0.99, loss=falling(60, 0.1)).speaks is True
    goes_on = {"record": {"source": "guard", "setup": SGD}}
    assert standing(lambda _: 0.99, loss=falling(60, 0.1), **goes_on).speaks is False


def test_nobody_knows_yet_in_a_short_run_or_in_a_warm_up():
    assert standing(lambda _: 1.0, steps=49) is None
    assert standing(lambda _: 1.0, steps=50).speaks is True
    assert standing(lambda _: 1.0, loss=lambda _: None, steps=49) is None
    assert standing(lambda _: 1.0, each=lambda step: {"lrs": (1e-4 * (step + 1),)}) is None


def test_a_schedule_that_has_ended_lets_the_weights_rest():
    ends = {"each": lambda step: {"lrs": (0.1 if step < 52 else 1e-3,)}}
    assert standing(lambda step: 0.0 if step < 52 else 1.0, **ends).speaks is False
    assert standing(lambda _: 1.0, each=lambda _: {"lrs": (0.0,)}) is None


def test_float32_and_rates_far_too_low_are_the_other_rule():
    assert standing(lambda _: 1.0, dtype="float32") is None
    tiny = {"reading": {"lrs": (1e-12,)}, "record": {"setup": ADAM}}
    assert standing(lambda _: 1.0, **tiny) is None
    assert judge("EG602", 200, noisy(1.0), lambda _: weight(still_frac=1.0, dtype="bfloat16"), **tiny).speaks is True


# --- EG608 ---


def norms(at=None, count=9, loss=None, **settings):
    """A run whose batch normalisations are as told, at the steps of `at`."""
    known = {"kind": "BatchNorm1d", "observations": 64, "tracked": 5}
    usual, odd_one = LayerReading(name="bn", **known), LayerReading(name="bn", **(known | settings))
    layers = lambda step: (odd_one if at is None or step in at else usual,)  # noqa: E731
    return judge("EG608", count, loss or noisy(1.0), lambda _: None, each=lambda step: {"layers": layers(step)})


@pytest.mark.parametrize(
    ("settings", "speaks"),
    [
        ({"observations": 2}, True),
        ({"observations": 1}, True),
        ({"observations": 3}, False),
        ({"observations": 0}, False),  # not known
        ({"observations": 2, "training": False}, False),
        ({"observations": 2, "kind": "SyncBatchNorm"}, True),
        ({"observations": 2, "at": range(6)}, True),
        ({"observations": 2, "at": range(5)}, False),
        ({"observations": 2, "at": {8}}, False),  # the last batch of a pass
        ({"observations": 2, "count": 2}, None),
        ({"observations": 2, "kind": "LayerNorm"}, None),
        ({"observations": 2, "kind": "GroupNorm"}, None),
    ],
)
def test_batch_normalisation_over_two_numbers_is_told_where_it_is_the_rule(settings, speaks):
    seen = norms(**settings)
    assert (seen if seen is None else seen.speaks) == speaks


@pytest.mark.parametrize(
    ("settings", "speaks"),
    [
        ({"tracked": 0}, True),
        ({"tracked": 0, "loss": falling(20, 0.9)}, False),
        ({"tracked": 0, "loss": lambda step: math.nan if step == 19 else 1.0}, True),
        ({"tracked": 0, "loss": lambda _: None}, False),
        ({"tracked": 0, "at": {0}}, False),  # before any training
        ({"tracked": 1}, False),  # frozen on purpose
        ({"tracked": None}, False),
        ({"training": True, "tracked": 0}, False),
    ],
)
def test_statistics_that_no_batch_has_set_are_told_where_the_loss_shows_no_gain(settings, speaks):
    seen = norms(**({"training": False, "count": 20} | settings))
    assert seen.speaks == speaks
    assert seen.cause.startswith("a mistake in the code: model.train() is missing") == speaks


def test_one_layer_of_many_may_normalise_over_two_numbers():
    few, many = ({"kind": "BatchNorm2d", "observations": count} for count in (2, 128))
    for kinds, speaks in (((few, many), False), ((few, few, many), True)):
        layers = tuple(LayerReading(name=f"{place}", **one) for place, one in enumerate(kinds))
        seen = judge("EG608", 5, noisy(1.0), lambda _: None, reading={"layers": layers})
        assert seen.speaks == speaks
        assert seen.where == (("0", "1") if speaks else ())


# --- all of them ---


@pytest.mark.parametrize("code", RUN_RULES)
def test_readings_without_samples_or_set_up_cannot_be_judged(code):
    plain = Record(readings=tuple(Reading(step=step, loss=1.0) for step in range(100)))
    assert BY_CODE[code].judge(plain) is None
    without = replace(run(100, noisy(1.0), straight(), reading={"leftover": False}), setup=None)
    seen = BY_CODE[code].judge(without)
    assert seen is None or seen.speaks is False


def odd(generator):
    pool = (0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308, generator.random(), generator.random(), None)
    return generator.choice(pool)


def stranger(seed):
    """A log that nobody has checked."""
    generator = random.Random(seed)
    sure = lambda: odd(generator) or 0.0  # noqa: E731
    may_lack = ("grad_rms", "update_ratio", "still_frac", "moved_ratio", "row_spread", "grad_row_spread")
    names, readings = [f"{at}.weight" for at in range(5)], []
    for step in range(generator.choice((1, 3, 60, 120))):
        weights = [{"name": one, "weight_rms": sure(), "fan_in": generator.choice((0, 4))} for one in names]
        layers = [{"name": one[0], "activation_rms": sure(), "grad_rms": odd(generator)} for one in names]
        known = {"loss": odd(generator), "lrs": (sure(),), "total_norm": odd(generator), "scale": sure()}
        ends = Ends(inputs=(TensorReading(name="input", mean=sure(), std=sure()),), constant_loss=odd(generator))
        known |= {
            "weights": tuple(weight(**one, **{field: odd(generator) for field in may_lack}) for one in weights),
            "layers": tuple(LayerReading(kind="Linear", weighted=True, numel=4, **one) for one in layers),
            "grad_norms": tuple(sure() for _ in names),
        }
        readings.append(Reading(step=step, ends=ends, **known))
    setup = Setup(optimizer="Adam", eps=odd(generator), weight_decay=sure(), momentum=sure(), numels=(4,) * 5)
    return Record(readings=tuple(readings), parameters=tuple(names), setup=setup)


@pytest.mark.parametrize("seed", range(40))
def test_a_log_of_any_numbers_is_judged_without_an_error(seed):
    record = stranger(seed)
    for code, rule in BY_CODE.items():
        if code in RUN_RULES:
            seen = [rule.judge(record)]
        elif code in {"EG303", "EG304", "EG401", "EG402", "EG403"}:
            seen = [rule.sign(reading, record) for reading in record.readings]
        else:
            continue
        assert not any(one is not None and math.isnan(one.decades) for one in seen)


def test_the_cost_of_a_rule_hardly_grows_with_the_number_of_samples():
    weights = tuple(weight(name=f"{at}", update_ratio=1e-3, moved_ratio=0.1) for at in range(50))
    readings = tuple(Reading(step=step, loss=1.0, lrs=(0.1,), weights=weights) for step in range(20_000))
    seconds = []
    for count in (2_000, 20_000):
        record = Record(readings=readings[:count], setup=SGD)
        begin = time.process_time()
        BY_CODE["EG606"].judge(record)
        way_of(thinned(record.readings))
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 5 * seconds[0] + 0.1
