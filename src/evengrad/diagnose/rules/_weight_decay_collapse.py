"""EG606: weight decay shrinks the weights to nothing."""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, log, log10
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import SMALLEST_GAIN, gain_of, is_of_adams_kind, sampled, thinned
from evengrad.diagnose._proposals import cure
from evengrad.diagnose._trend import Trend, trend_of
from evengrad.nouns import Cure, Evidence, Reading, Record

# A tenth of what they were: through two such layers a hundredth of the signal is left.
SHRUNK_DECADES = 1.0
# A decay of which the time, 1 / (rate * decay), is fewer steps than this forgets: the weights are what the last batches
# have left. Usual are ten thousand.
SHORTEST_MEMORY_STEPS = 50
FORGETFUL_FRAC = 0.9
HELD_DOWN_DECADES = 0.3
# Such a run may still learn; it is told only if its loss stays above this share of that of a constant.
LEARNT = 0.5
# What the decay predicts may be off by this factor: schedules, groups without decay, what the gradient adds.
AGREES = 3.0
FEWEST_SAMPLES = 8


@final
class WeightDecayCollapse(AbstractRunRule):
    """Weight decay collapse: the weights shrink towards zero at the rate of the decay, and the loss does not improve.

    Sees:
        The size of the weight matrices over the sampled steps. The rule speaks when it has fallen tenfold (the
        median of the matrices), was falling all the time, as fast as learning rate times weight decay predict, and
        the loss has not come down or ends no better than a constant prediction. It also speaks when each step takes
        more than a fiftieth of the weights, which then hold only what the last batches have left, and the loss has
        stopped above half of that of a constant.

    Hurts:
        The decay pulls stronger than the loss. Every layer passes on less, the gradient, a product over the layers,
        shrinks faster than any of them, and in the end the output is a constant.

    Cure:
        A weight decay ten or a hundred times smaller (SetOptimizer); decoupled decay (AdamW), where it was added to
        the gradient.

    False alarms:
        Weights before a normalisation may shrink without harm, and weights that were drawn too large should: the loss
        then falls, and nothing is told.

    Source:
        Krogh and Hertz 1992, A simple weight decay can improve generalization; Loshchilov and Hutter 2019,
        arXiv 1711.05101.
    """

    code: ClassVar[str] = "EG606"
    symptom: ClassVar[str] = "weight decay collapse"
    source: ClassVar[str] = "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101"
    family: ClassVar[str] = "weight-decay"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Compare how the weights shrink with what the decay predicts, then look at the loss."""
        readings = sampled(record)
        if record.setup is None or len(readings) < FEWEST_SAMPLES:
            return None
        decay = record.setup.weight_decay
        sizes = _sizes(readings)
        if not sizes or decay <= 0.0:
            return None
        trend = trend_of(record)
        if trend is None:
            return None
        shrunk = -sizes[-1][1]
        adaptive = is_of_adams_kind(record.setup.optimizer) and not record.setup.optimizer.endswith("W")
        gone = next((at for at, (_, size) in enumerate(sizes) if size <= -SHRUNK_DECADES), None)
        if shrunk >= SHRUNK_DECADES and gone and _no_gain(trend):
            before, (step, size) = sizes[gone - 1][0], sizes[gone]
            least, predicted = _predicted(record, decay, before), _predicted(record, decay, step)
            agrees = least <= AGREES * SHRUNK_DECADES and -size <= AGREES * predicted
            if (adaptive or agrees) and _falls_all_the_time([one for _, one in sizes[: gone + 1]]):
                return _told(readings, shrunk, decay, None if adaptive else (step, -size, predicted))
        if shrunk < SHRUNK_DECADES and not adaptive and _forgets(record, decay) and _stays(trend, shrunk):
            return _held_down(readings, shrunk, decay, trend)
        return Sign(decades=max(shrunk, 0.0))

    def cures(self) -> tuple[Cure, ...]:
        """Propose less decay, then none."""
        return (cure("SetOptimizer", weight_decay=1e-4), cure("SetOptimizer", weight_decay=0.0))


def _sizes(readings: Sequence[Reading]) -> list[tuple[int, float]]:
    """Follow the size of the matrices: the median, in decades, of what it is of that at the first sampled step."""
    first = {
        one.name: one.weight_rms for one in readings[0].weights if one.fan_in > 0 and gain_of(one) >= SMALLEST_GAIN
    }
    found = []
    for reading in readings:
        ratios = [one.weight_rms / first[one.name] for one in reading.weights if one.name in first]
        finite = [max(ratio, 1e-30) for ratio in ratios if isfinite(ratio)]
        if finite:
            found.append((reading.step, log10(median(finite))))
    return found


def _falls_all_the_time(sizes: Sequence[float]) -> bool:
    """Compare quarters of the samples: the size at the end of each is below that at its beginning."""
    places = [number * (len(sizes) - 1) // 4 for number in range(5)]
    return all(sizes[after] < sizes[before] for before, after in pairwise(places))


def _forgets(record: Record, decay: float) -> bool:
    """Tell whether nearly all of the steps take more than a fiftieth of the weights."""
    rates = [max(one.lrs) for one in thinned(record.readings) if one.lrs]
    fast = [rate for rate in rates if rate * decay >= 1 / SHORTEST_MEMORY_STEPS]
    span = record.readings[-1].step - record.readings[0].step
    return bool(fast) and len(fast) >= FORGETFUL_FRAC * len(rates) and span >= 4 * SHORTEST_MEMORY_STEPS


def _stays(trend: Trend, shrunk: float) -> bool:
    """Tell whether small weights and a loss that is far from learnt have come to rest."""
    small = shrunk >= HELD_DOWN_DECADES and not trend.still_falling
    return small and trend.level is not None and trend.level.ratio >= LEARNT


def _held_down(readings: Sequence[Reading], shrunk: float, decay: float, trend: Trend) -> Sign:
    first, last = readings[0], readings[-1]
    rate = next((max(one.lrs) for one in reversed(readings) if one.lrs), float("nan"))  # a look at the end has none
    return Sign(
        decades=shrunk,
        speaks=True,
        where=("optimizer",),
        message=(
            f"each step takes {rate * decay:.2g} of the weights, which are held at {10**-shrunk:.2g} of their size and "
            f"forget in {1 / (rate * decay):.0f} steps; the loss stays at {trend.end:.4g}"
        ),
        evidence=(
            Evidence(name="weight decay", value=decay),
            Evidence(name="learning rate", value=rate),
            Evidence(name="weights at the end over weights at the start, median", value=10**-shrunk),
        ),
        when=(first.step, last.step),
        cause=f"a weight decay of {decay:.2g} at a learning rate of {rate:.2g}",
    )


def _predicted(record: Record, decay: float, until: int) -> float:
    """Decades that the weights lose by a step if only the decay acts: each takes the rate times the decay of them.

    A momentum m adds up what is added to the gradient, to 1 / (1 - m) of it.
    """
    seen = [one for one in thinned(record.readings) if one.lrs and one.step <= until]
    rates = [max(one.lrs) for one in seen if isfinite(max(one.lrs))]
    if not rates:
        return 0.0
    steps = until - record.readings[0].step
    plain = record.setup is not None and not is_of_adams_kind(record.setup.optimizer)
    momentum = min(record.setup.momentum, 0.999) if record.setup is not None and plain else 0.0
    return sum(rate / len(rates) for rate in rates) * steps * decay / (1.0 - momentum) / log(10.0)


def _no_gain(trend: Trend) -> bool:
    return not trend.fell or (trend.level is not None and trend.level.no_better)


def _told(
    readings: Sequence[Reading], shrunk: float, decay: float, first_decade: tuple[int, float, float] | None
) -> Sign:
    first, last = readings[0], readings[-1]
    how = evidence = None
    if first_decade is not None:
        step, lost, predicted = first_decade
        how = f" (by {lost:.1f} until step {step}, where the decay alone would take {predicted:.1f})"
        evidence = Evidence(name=f"what the decay alone would take until step {step}", value=predicted, unit="decades")
    before = {one.name: one.weight_rms for one in first.weights}
    names = [
        one.name
        for one in last.weights
        if one.fan_in > 0 and one.weight_rms <= 10**-SHRUNK_DECADES * before.get(one.name, 0.0)
    ]
    return Sign(
        decades=shrunk,
        speaks=True,
        where=tuple(names),
        message=(
            f"the weights have shrunk by {shrunk:.1f} decades in {last.step - first.step} steps under a weight decay "
            f"of {decay:.2g}{how or ''}, and the loss has not gained by it"
        ),
        evidence=(
            Evidence(name="weights at the end over weights at the start, median", value=10**-shrunk),
            Evidence(name="weight decay", value=decay),
            *(() if evidence is None else (evidence,)),
        ),
        when=(first.step, last.step),
        cause=f"a weight decay of {decay:.2g} at a learning rate of {max(first.lrs, default=float('nan')):.2g}",
    )
