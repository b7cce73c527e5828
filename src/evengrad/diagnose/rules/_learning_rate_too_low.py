"""EG602: the weights go a short way in a straight line and the loss with them."""

from collections.abc import Sequence
from math import log10
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._initial import looks_untrained
from evengrad.diagnose._level import has_ended
from evengrad.diagnose._movement import (
    HALVES,
    Way,
    intended_ratio,
    is_of_adams_kind,
    resolution_of,
    sampled,
    thinned,
    typical_ratio,
    way_of,
)
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, LARGER_STEPS
from evengrad.diagnose._trend import Trend, trend_of
from evengrad.diagnose._wording import figures
from evengrad.nouns import Cure, Evidence, Reading, Record

# Shorter runs are straight for a lack of time: a useful learning rate takes tens of steps to bend its way. A momentum m
# keeps its direction for 1 / (1 - m) steps by itself, and it takes tens of those.
FEWEST_STEPS = 50
FEWEST_MEMORIES = 20
USUAL_MOMENTUM = 0.9
MOST_MOMENTUM = 0.999
# Steps in one direction with a tenth of zigzag: on its way a useful run turns, by the noise of its batches (n steps of
# pure noise go 1 / sqrt(n) of their length) and because the gradient changes where it has gone. Healthy runs that were
# long enough were at 0.04 to 0.89 unless they had nothing to gain, runs whose learning rate was too low at 0.95 to 1.
STRAIGHT = 0.9
# A distance cannot be longer than the way; the way between samples is filled in, and may come out a little short.
INCONSISTENT = 1.1
# A step of a tenth of the weights is felt.
FELT = 0.1
# What the loss has come down by, at most: else the run learns, if slowly. Of a run that goes on nobody knows how long
# it is meant to be, and of a loss without a constant to compare with, how much there is to gain: then only if it would
# take fifty times as long as it has to come down at all.
MOST_FALLEN = 0.2
MOST_FALLEN_SO_FAR = 0.02
# As EG607 asks.
STILL = 0.9
# Decay by itself moves weights in a straight line: towards zero.
DECAYED = 0.9
# The loss at the end against the best constant prediction: below half of it the run had learnt before, or learns.
LEARNT = 0.5
# Within the last third the loss comes down, from the median of its first half to that of its second, by a sixth of a
# straight fall over the whole run. Less than half of that is a loss that has flattened.
LATE_SHARE = 1 / 6
FLATTENED = 0.5
# All steps of a whole run together: a change of a hundredth of the weights changes what a layer gives by a hundredth.
# From weights as drawn that leads nowhere; a wide network that needs no more shows it by a loss that falls.
NOWHERE = 0.01
# A schedule that has died by then was meant for another number of steps.
EARLY = 0.2


@final
class LearningRateTooLow(AbstractRunRule):
    """Learning rate too low: the steps are far below what the weights can feel.

    Sees:
        How far the weights have gone since the first step, over the length of the way that they took there: 1 for a
        straight line. The rule speaks when over 50 steps or more (200 with a momentum of 0.9) the way is straight to a
        tenth, and the loss has come down by less than a fifth (a fiftieth while the run goes on) and is still coming
        down along a straight line, or is no better than a constant prediction. It also speaks when the steps are so
        small that float32 rounds them away. Of a run that is over and whose loss has not fallen, it speaks whatever
        the direction where all steps together are at most a hundredth of the weights, and where the learning rate is
        below a thousandth of its largest from the first fifth on, or 0 all the time: when the loss is no better than a
        constant prediction or, where that is not known, the weights were as drawn at the start.

    Hurts:
        If the direction is the same after the whole run, one step of the length of all of them would have done the
        same. The learning rate wastes the run, by about the number of its steps.

    Cure:
        A learning rate ten or a hundred times larger (ScaleLearningRate).

    False alarms:
        Where the learning rate is anywhere near useful, the noise of the batches makes the way zigzag and the gradient
        changes along it. A good fit that is tuned in tiny steps may go straight as well; it is not told, since its loss
        does not come down steadily or is below half of that of a constant prediction. Tuning of trained weights in tiny
        steps, from a loss that has nothing to gain, is not told where that is not known. While a run goes on, a warm-up
        that is still rising, short runs and weights that only decay are not told. Neither are runs whose first steps
        were most of the way, because a network that they have broken has no gradient any more: as many steps are asked
        for as noise of the same sizes would need. Where it is not known what a constant
        would lose, the loss must have come down by no more than a fiftieth.

    Source:
        Geometry: a straight way at a steady fall is one on which the gradient has not changed. Smith 2017, Cyclical
        learning rates, arXiv 1506.01186, section 3.3, on finding the useful range.
    """

    code: ClassVar[str] = "EG602"
    symptom: ClassVar[str] = "learning rate too low"
    source: ClassVar[str] = "Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186"
    family: ClassVar[str] = "lr-low"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Look whether steps are rounded away, then how straight the way was and how far the loss came."""
        readings = sampled(record)
        memories = _memories(record)
        fewest = max(FEWEST_STEPS, memories)
        if len(readings) < 3 or record.readings[-1].step - readings[0].step < fewest - 1:
            return None
        trend = trend_of(record)
        wasted = None if trend is None else _wasted(trend, record, readings)
        if trend is not None and (trend.warming_up or trend.full_steps < fewest or not trend.last_finite):
            return wasted or Sign(decades=0.0)
        way = way_of(readings)
        stood = way is None or way.length <= NOWHERE  # else the steps became small when the gradient was lost
        if stood and is_lost_in_rounding(record, readings) and _counts(trend, record):
            return _rounded(readings)
        if wasted is not None or way is None or trend is None:
            return wasted
        enough = round(way.full_steps) >= memories - 1  # a few large steps are straight, whatever comes after them
        straight = enough and _is_straight(way, readings) and not _decays(readings, record)
        known = has_ended(trend, record) and trend.level is not None
        if not straight or not _hardly_moves(trend, MOST_FALLEN if known else MOST_FALLEN_SO_FAR):
            return Sign(decades=0.0)
        return _straight(way, trend, readings)

    def cures(self) -> tuple[Cure, ...]:
        """Propose larger steps, then an optimizer whose steps have a size."""
        return (*LARGER_STEPS, *ANOTHER_OPTIMIZER)


def _wasted(trend: Trend, record: Record, readings: Sequence[Reading]) -> Sign | None:
    """Tell of a run that is over: a schedule that died early, or steps that together are next to nothing."""
    if not record.complete or record.source == "guard" or not trend.last_finite or trend.fell or trend.rose:
        return None
    level = trend.level
    if not (level.no_better if level is not None else trend.from_start and looks_untrained(readings[0].weights)):
        return None
    if trend.rate_died is not None and trend.rate_died - trend.first_step <= EARLY * trend.span:
        return _died(trend, record, readings)
    way = way_of(readings)
    if way is None or way.length > NOWHERE or _stand_still(readings):
        return None
    return _nowhere(way, trend, readings)


def _stand_still(readings: Sequence[Reading]) -> bool:
    """Tell whether the weights are in half precision and round the steps away: that is EG607."""
    known = [
        one.still_frac for reading in readings for one in reading.weights if one.dtype in HALVES and one.fan_in > 0
    ]
    still = [frac for frac in known if frac is not None]
    return bool(still) and median(still) >= STILL


def is_lost_in_rounding(record: Record, readings: Sequence[Reading]) -> bool:
    """Tell whether the steps of most matrices are below what float32 resolves, at nine in ten of the sampled steps."""
    if record.setup is None:
        return False
    known = [ratio for one in readings if (ratio := intended_ratio(one, record.setup)) is not None]
    small = [ratio for ratio in known if 0.0 < ratio < resolution_of("float32")]
    return len(known) >= 3 and 10 * len(small) >= 9 * len(known)


def _counts(trend: Trend | None, record: Record) -> bool:
    """Tell whether steps of nothing are the learning rate's fault: of plain descent they may be those of a minimum."""
    if record.setup is not None and is_of_adams_kind(record.setup.optimizer):
        return trend is None or not trend.fell
    return trend is not None and trend.level is not None and trend.level.no_better


def _is_straight(way: Way, readings: Sequence[Reading]) -> bool:
    """Tell whether the way goes one way in small steps; what the samples do not hold together is no way."""
    largest = max((typical_ratio(one) or 0.0 for one in readings), default=0.0)
    return min(way.straightness, way.halfway) >= STRAIGHT and way.straightness <= INCONSISTENT and largest <= FELT


def _memories(record: Record) -> int:
    """Count the steps that it takes to see that a direction is not the momentum's own."""
    known = record.setup is not None and 0.0 <= record.setup.momentum <= MOST_MOMENTUM
    momentum = record.setup.momentum if record.setup is not None and known else USUAL_MOMENTUM
    return round(FEWEST_MEMORIES / (1.0 - momentum))


def _decays(readings: Sequence[Reading], record: Record) -> bool:
    """Tell whether weight decay has shrunk most of the matrices."""
    if record.setup is None or record.setup.weight_decay == 0.0:
        return False
    first = {one.name: one.weight_rms for one in readings[0].weights if one.fan_in > 0 and one.weight_rms > 0.0}
    ratios = [one.weight_rms / first[one.name] for one in readings[-1].weights if one.name in first]
    return bool(ratios) and median(ratios) < DECAYED


def _hardly_moves(trend: Trend, most: float) -> bool:
    """Tell whether the loss has come down little, steadily, and from where there is much to gain."""
    if trend.fallen_frac > most or trend.rose or (trend.level is not None and trend.level.ratio < LEARNT):
        return False
    if trend.level is not None and trend.level.no_better and not trend.rising:
        return True
    fall = trend.start - trend.end
    return trend.fell and trend.still_falling and trend.late_fall >= FLATTENED * LATE_SHARE * fall


def _rounded(readings: Sequence[Reading]) -> Sign:
    ratio = max((typical_ratio(one) or 0.0 for one in readings), default=0.0)
    rate = max((max(one.lrs, default=0.0) for one in thinned(readings)), default=0.0)
    return Sign(
        decades=1.0,
        speaks=True,
        where=("optimizer",),
        message=(
            f"with a learning rate of at most {rate:.2g} the steps are below what float32 resolves of the weights: "
            f"nothing moves"
        ),
        evidence=(
            Evidence(name="largest learning rate", value=rate),
            Evidence(name="largest step over weights, median of the weight matrices", value=ratio),
        ),
        when=(readings[0].step, readings[-1].step),
    )


def _died(trend: Trend, record: Record, readings: Sequence[Reading]) -> Sign:
    rates = [max(one.lrs) for one in record.readings if one.lrs]
    peak, at = max(rates), trend.rate_died or trend.first_step
    how = "is 0" if peak == 0.0 else f"is below a thousandth of its largest, {figures(peak)},"
    left = trend.first_step + trend.steps - at
    return Sign(
        decades=log10(max(left, 1)),
        speaks=True,
        where=("optimizer",),
        message=(
            f"the learning rate {how} in the last {left} of {trend.steps} steps, and the loss went from "
            f"{trend.start:.4g} to {trend.end:.4g}"
        ),
        evidence=(
            Evidence(name="largest learning rate", value=peak),
            Evidence(name="learning rate at the end", value=rates[-1]),
        ),
        when=(at, readings[-1].step),
        cause="a schedule that is stepped too often, or was meant for fewer steps" if peak > 0.0 else "",
    )


def _nowhere(way: Way, trend: Trend, readings: Sequence[Reading]) -> Sign:
    rising = " the learning rate was still rising when the run ended:" if trend.warming_up else ""
    return Sign(
        decades=log10(max(way.steps, 1)),
        speaks=True,
        where=("optimizer",),
        message=(
            f"all {way.steps} steps together are {figures(way.length)} of the size of the weights, and the loss went "
            f"from {trend.start:.4g} to {trend.end:.4g}:{rising} nothing can be learnt by so little"
        ),
        evidence=(
            Evidence(name="length of the way over size of the weights", value=way.length),
            Evidence(name="distance over length of the way", value=way.straightness),
            Evidence(name="learning rate", value=_last_rate(readings)),
        ),
        when=(readings[0].step, readings[-1].step),
    )


def _straight(way: Way, trend: Trend, readings: Sequence[Reading]) -> Sign:
    return Sign(
        decades=log10(max(way.steps, 1)),
        speaks=True,
        where=("optimizer",),
        message=(
            f"in {way.steps} steps the weights have gone {way.distance:.2g} of their size, straight to "
            f"{way.straightness:.0%}, while the loss went from {trend.start:.4g} to {trend.end:.4g}: one step of the "
            f"length of all would have done as much"
        ),
        evidence=(
            Evidence(name="distance over length of the way", value=way.straightness),
            Evidence(name="distance over size of the weights", value=way.distance),
            Evidence(name="learning rate", value=_last_rate(readings)),
        ),
        when=(readings[0].step, readings[-1].step),
    )


def _last_rate(readings: Sequence[Reading]) -> float:
    """Take the learning rate of the last step; the look at the model after it has none."""
    return next((max(one.lrs) for one in reversed(readings) if one.lrs), float("nan"))
