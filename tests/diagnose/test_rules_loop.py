"""Rules of the loop, of clipping, epsilon, decay, dtype and batch normalisation, on readings made by hand."""

import math
import random
from dataclasses import replace

import pytest
from made_readings import CONSTANT

from evengrad.diagnose import rules
from evengrad.nouns import LayerReading, ParameterReading, Reading, Record, Setup

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


def falling(steps, share, level=1.0):
    return lambda step: level * (1.0 - share * step / steps)


def rounded(step):
    return weight(update_ratio=0.0, moved_ratio=0.0, still_frac=1.0)


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
        ((True, True, False, True), True),
        ((True, False, True, True), True),
        ((True, True, True, *[False] * 27), True),  # a tenth of thirty
        ((True, True, True, *[False] * 28), False),
        ((True, True, *[False] * 10), False),
        ((*[False, False, True] * 20, False), True),
        ((False, False), False),
        ((None, None), None),
    ],
)
def test_zero_grad_is_forgotten_where_the_last_two_looks_show_it_or_three_and_a_tenth_of_all(found, speaks):
    seen = BY_CODE["EG603"].judge(leftovers(*found))
    assert (seen if seen is None else seen.speaks) == speaks


def test_where_the_gradient_is_zero_nobody_can_tell_whether_it_was_left_over():
    looks = (*[True] * 3, *[False] * 40)
    readings = tuple(
        Reading(step=step, leftover=one, total_norm=0.0 if step > 9 else 1.0) for step, one in enumerate(looks)
    )
    assert BY_CODE["EG603"].judge(Record(readings=readings)).speaks
    assert not BY_CODE["EG603"].judge(Record(readings=tuple(replace(one, total_norm=1.0) for one in readings))).speaks


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


def clipped_outside(ratio=1e-5, spread=0.0, share=1.0, noise=0.02, setup=SGD, norm=1.0, steps=100):
    """Norms that are the same number but for a spread, at a share of the steps."""
    each = lambda step: {"total_norm": norm * (1.0 + spread * (-1) ** step if step < share * steps else 2.0)}  # noqa: E731
    return judge("EG604", steps, noisy(1.0, noise), ratios([], ratio), each=each, record={"setup": setup})


@pytest.mark.parametrize(
    ("settings", "speaks"),
    [
        ({}, True),
        ({"spread": 4.9e-4}, True),
        ({"spread": 5.1e-4}, False),  # nothing clips
        ({"share": 0.9}, True),
        ({"share": 0.89}, False),
        ({"noise": 0.001}, False),  # the whole data in each step: the norm is the same by itself
        ({"ratio": 1.01e-3}, False),  # a hundred steps go a tenth of the weights
        ({"setup": ADAM}, False),
        ({"setup": ADAM, "norm": 3.9e-8}, True),
        ({"setup": ADAM, "norm": 4.1e-8}, False),
        ({"norm": 0.0}, False),
        ({"steps": 49}, None),
    ],
)
def test_clipping_outside_of_the_guard_is_known_by_a_norm_that_is_always_the_same(settings, speaks):
    seen = clipped_outside(**settings)
    assert (seen if seen is None else seen.speaks) == speaks


def test_clipping_outside_is_told_by_the_norm_it_leaves():
    seen = clipped_outside(norm=1e-6)
    assert "before the guard has seen them, to a norm of 1e-06" in seen.message
    assert seen.cause == "a clipping threshold of 1e-06, far below the usual gradient norm: raise it"


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
    assert drowned(lambda step: (1.0 if step < 1 else 1e-9,)).speaks is False
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
