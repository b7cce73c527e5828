"""EG601: steps as large as the weights, after which nothing is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, log10
from statistics import median
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._movement import sampled, typical_ratio
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, CLIPPING, SMALLER_STEPS, cure
from evengrad.diagnose._trend import Trend, losses_of, trend_of
from evengrad.diagnose._wording import figures
from evengrad.nouns import Cure, Evidence, Reading, Record

# Steps that are together as large as the weights replace them, whenever they come: what the initialisation had
# arranged, that the signal keeps its size, is gone, and what was learnt with it. Ten steps of a tenth do that. What
# follows may be tiny, because nothing is left that has a gradient: it says nothing in favour of the large ones.
REPLACED = 1.0
NOTABLE = 0.1
# n steps of ratio r in changing directions move the weights by r * sqrt(n) of their size: at 0.3 a run has forgotten
# after eleven steps what it had learnt. Useful steps are at 1e-3; the largest of healthy small networks was 0.28.
FORGETTING = 0.3
FEW_STEPS = 10
FEWEST_SAMPLES = 3
# A schedule changes the rate by some per cent in a step, and by a factor of ten at most where it goes down in stairs.
JUMP = 10.0
# Below what was before by less than chance does in one of forty cases: no gain.
SIGMAS = 2.0


@final
class LearningRateTooHigh(AbstractRunRule):
    """Learning rate too high: steps are as large as the weights, and the loss does not come down.

    Sees:
        The norm of each step over the norm of the weights, the median of all weight matrices. The rule speaks when ten
        steps in a row add up to 1, or half of the sampled steps or more are of 0.3, and when the loss has shown the
        harm: it is not finite at the end, or ends no lower than it was before, or no better than the best constant
        prediction. After steps that are not the first ones it must end higher than before, and no lower than the run
        began. Where the learning rate had jumped tenfold just before, that is told as the cause.

    Hurts:
        Steps as large as the weights replace what was learnt and what the initialisation had arranged. Rectifiers
        die, saturating units saturate, the loss jumps and is then stuck, or everything overflows.

    Cure:
        A learning rate ten times smaller or less (ScaleLearningRate); gradients clipped, where only single ones are
        huge (ClipGradients); an optimizer whose steps have a size (SwapOptimizer).

    False alarms:
        Weights that start at nearly nothing have large ratios by design and are left out: biases, embeddings, what
        lets less than a tenth of a signal through. Large steps at which the loss falls are not told. Games between
        networks, whose loss does not fall, make steps of a hundredth of their weights.

    Source:
        You et al. 2017, arXiv 1708.03888, on the ratio of update and weights; LeCun et al. 1998, Efficient BackProp,
        section 4.6, on steps beyond twice the largest stable one.
    """

    code: ClassVar[str] = "EG601"
    symptom: ClassVar[str] = "learning rate too high"
    source: ClassVar[str] = "You et al. 2017, Large Batch Training of Convolutional Networks, arXiv 1708.03888"
    family: ClassVar[str] = "lr-high"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Find large steps, then what the loss did after them."""
        steps = [(one, ratio) for one in sampled(record) if (ratio := typical_ratio(one)) is not None]
        if not steps:
            return None
        found = _large(steps)
        if not found:
            return Sign(decades=_decades(max(ratio for _, ratio in steps)))
        judged = [(large, _harm(record, large[0][0].step, late=late)) for large, late in found]
        large, harm = next((one for one in judged if one[1]), judged[0])
        worst = max(ratio for _, ratio in large)
        if harm is None or not harm:
            return None if harm is None else Sign(decades=_decades(worst))
        first, ratio = large[0]
        jump = _jump(record, first.step, max(large, key=lambda one: one[1])[0].step)
        return Sign(
            decades=_decades(worst),
            speaks=True,
            where=("optimizer",),
            message=(
                f"the step at {first.step} is {figures(ratio)} times as large as the weights (median of the weight "
                f"matrices), the largest {figures(worst)} times, and {harm}"
            ),
            evidence=(
                Evidence(name=f"step over weights at step {first.step}", value=ratio),
                Evidence(name="largest step over weights", value=worst),
                Evidence(name="learning rate", value=max(first.lrs, default=float("nan"))),
            ),
            when=(first.step if jump is None else min(first.step, jump[0]), large[-1][0].step),
            cause="" if jump is None else _jumped(*jump),
        )

    def cures(self) -> tuple[Cure, ...]:
        """Propose smaller steps, clipping, then an optimizer whose steps have a size."""
        return (
            *SMALLER_STEPS[:1],
            *CLIPPING,
            *ANOTHER_OPTIMIZER,
            *SMALLER_STEPS[1:],
            cure("Reinitialize"),
            cure("ScaleLearningRate", factor=0.001),
        )


def _decades(ratio: float) -> float:
    return min(WIDEST_DECADES, max(0.0, log10(ratio / FORGETTING))) if ratio > 0.0 else 0.0


Steps = list[tuple[Reading, float]]


def _large(steps: Steps) -> list[tuple[Steps, bool]]:
    """List the steps that forget, and whether they were late: from the first ten that replace, and if half forget."""
    found = []
    replacing = _replacing(steps)
    if replacing:
        found.append((replacing, replacing[0][0].step - steps[0][0].step >= FEW_STEPS))
    large = [(reading, ratio) for reading, ratio in steps if ratio >= FORGETTING]
    later = [ratio for reading, ratio in steps if reading.step >= large[0][0].step] if large else []
    if len(large) >= FEWEST_SAMPLES and 2 * len(large) >= len(later):
        found.append((large, False))
    return found


def _replacing(steps: Steps) -> Steps:
    for at, (begin, _) in enumerate(steps):
        together = [ratio for reading, ratio in steps[at:] if reading.step - begin.step < FEW_STEPS]
        if sum(together) >= REPLACED:
            return [(reading, ratio) for reading, ratio in steps[at:] if ratio >= NOTABLE]
    return []


def _jump(record: Record, onset: int, worst: int) -> tuple[int, float, float] | None:
    """Find where the learning rate grew tenfold at once, just before or among the large steps: step, before, after.

    A run that begins at nearly nothing is warming up; it has not jumped.
    """
    known = [(one.step, max(one.lrs)) for one in record.readings if one.lrs and isfinite(max(one.lrs))]
    jumps = [
        (step, before, after)
        for (_, before), (step, after) in pairwise(known)
        if onset - FEW_STEPS < step <= worst and after >= JUMP * before > 0.0 and step - known[0][0] >= FEW_STEPS
    ]
    return max(jumps, key=lambda one: one[2] / one[1], default=None)


def _jumped(step: int, before: float, after: float) -> str:
    return f"the learning rate jumps at step {step}, from {figures(before)} to {figures(after)}: look at its schedule"


def _harm(record: Record, onset: int, *, late: bool) -> str | None:
    """Say what harm came of it; empty where none did, None where the loss does not tell."""
    losses = losses_of(record)
    if losses and not isfinite(losses[-1][1]):
        return "the loss is not finite any more"
    norms = [reading.total_norm for reading in record.readings if reading.total_norm is not None]
    if norms and not isfinite(norms[-1]) and not record.readings[-1].skipped:
        return "the gradient is not finite any more"
    trend = trend_of(record)
    if trend is None:
        return None
    before = _level_before([loss for step, loss in losses if step <= onset and isfinite(loss)])
    return _no_gain(trend, before, late=late)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Level:
    """A level of the loss, and how many losses it stands on."""

    middle: float
    count: int


def _level_before(losses: Sequence[float]) -> _Level | None:
    last = losses[-20:]
    return _Level(middle=median(last), count=len(last)) if last else None


def _no_gain(trend: Trend, before: _Level | None, *, late: bool) -> str:
    """Compare the end with what was there before the large steps, within what noise can do, and with a constant.

    A run that stays where it was has come to no harm by large steps on its way: after late ones it must end higher than
    before, and no lower than it began.
    """
    if trend.level is not None and trend.level.no_better:
        return f"the loss ends at {figures(trend.level.ratio)} times that of the best constant prediction"
    if before is None:
        return ""
    noise = SIGMAS * trend.start_noise
    risen = trend.end >= max(before.middle + noise, trend.start - noise)
    if risen if late else trend.end >= before.middle - noise / before.count**0.5:
        return f"the loss is {trend.end:.3g} at the end, after {before.middle:.3g} before"
    return ""
