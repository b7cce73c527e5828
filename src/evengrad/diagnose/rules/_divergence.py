"""EG803: the loss goes up and away."""

from collections.abc import Sequence
from math import inf, isfinite, log10
from typing import ClassVar, final

from evengrad.diagnose._abstract import AbstractRunRule, Sign, Tells
from evengrad.diagnose._ends import CROSS_ENTROPIES, form_of, sampled
from evengrad.diagnose._profile import WIDEST_DECADES
from evengrad.diagnose._proposals import ANOTHER_OPTIMIZER, CLIPPING, SMALLER_STEPS, cure
from evengrad.diagnose._streams import of_all
from evengrad.diagnose._trend import SIGNIFICANT_SIGMAS, Trend, losses_of, trend_of
from evengrad.nouns import Cure, Evidence, Record

# What descends is not above its start. Of losses with a level twice the start is out of reach of noise that has been
# averaged; on the way to a number that is none any loss has passed ten times its start.
RISE_FACTOR = 2.0
OVERFLOW_FACTOR = 10.0
# The losses of games rise by orders when the game begins to be played. A descent that is not stable multiplies its
# error by a factor in each step, and passes any number within some dozens of them.
UNKNOWN_FACTOR = 1e4
SIGMAS = 2.0
# A run that gives back two thirds of what it had gained, and does not come down again.
REGAINED_FRAC = 2 / 3


@final
class Divergence(AbstractRunRule):
    """Divergence: the loss rises far above where it began, or gives back what was learnt.

    Sees:
        The loss at the end against its first and its lowest. The rule speaks for a loss that ends at twice its start or
        more and above what the best constant prediction has on the same batches; for a cross entropy also without that
        constant, and when it has given back two thirds of its fall and does not come down again; for any loss that has
        passed ten times its start on the way to NaN or infinity; and for losses of unknown form at 10,000 times the
        start.

    Hurts:
        The run is lost: what it had learnt is gone.

    Cure:
        A smaller learning rate (ScaleLearningRate), clipping (ClipGradients), fresh weights (Reinitialize); the
        state from before the rise.

    False alarms:
        Losses of games rise when one player gets better, and that of a contrastive queue rises while it fills: without
        a level to compare with the rule waits for four decades. A loss that comes down again is not told, nor a run
        that was resumed unless its loss leaves the level of a constant.

    Source:
        Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.2.4 on cliffs; Philipp, Song and Carbonell 2017,
        arXiv 1712.05577.
    """

    code: ClassVar[str] = "EG803"
    symptom: ClassVar[str] = "divergence"
    source: ClassVar[str] = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.2.4"
    family: ClassVar[str] = "divergence"
    tells: ClassVar[Tells] = "harm"

    def judge(self, record: Record) -> Sign | None:
        """Hold the end of the loss against its start."""
        return of_all(self._of_one, record)

    def _of_one(self, record: Record) -> Sign | None:
        told = losses_of(record)
        overflown = _before_overflow(told)
        if overflown is not None:
            return _sign(told, told[0][1], overflown, "before it was no number any more")
        trend = trend_of(record)
        if trend is None:
            return None
        start = min(trend.start, next(loss for _, loss in told if isfinite(loss)))
        if _given_back(trend, record):
            lowest = min(range(len(told)), key=lambda at: told[at][1] if isfinite(told[at][1]) else inf)
            return _sign(told[lowest:], trend.best, trend.end, "after it had come down to that")
        if trend.still_falling or trend.end - start <= SIGNIFICANT_SIGMAS * trend.end_noise / trend.count**0.5:
            return Sign(decades=0.0)
        if _above_level(trend, start) or _risen(trend, start, record):
            return _sign(told, start, trend.end, "and stays there")
        return Sign(decades=0.0)

    def cures(self) -> tuple[Cure, ...]:
        """Propose shorter steps."""
        return (*SMALLER_STEPS, *CLIPPING, cure("SetOptimizer"), *ANOTHER_OPTIMIZER, cure("Reinitialize"))


Told = Sequence[tuple[int, float]]


def _before_overflow(told: Told) -> float | None:
    """Give the largest of the last losses before the first that is no number, if that had grown tenfold."""
    bad = next((at for at, (_, loss) in enumerate(told) if not isfinite(loss)), None)
    if bad is None or bad < 2 or told[0][0] != 0:
        return None
    last = max(loss for _, loss in told[max(1, bad - 3) : bad])
    return last if last >= OVERFLOW_FACTOR * abs(told[0][1]) > 0.0 else None


def _above_level(trend: Trend, start: float) -> bool:
    level = trend.level
    if level is None or level.ratio - SIGMAS * level.error <= 1.0 or start <= 0.0:
        return False
    return trend.end >= RISE_FACTOR * start


def _risen(trend: Trend, start: float, record: Record) -> bool:
    if not (trend.from_start and trend.rose and start > 0.0):
        return False
    factor = RISE_FACTOR if _is_cross_entropy(record) else UNKNOWN_FACTOR
    return trend.end >= factor * max(trend.start, trend.start_noise)


def _given_back(trend: Trend, record: Record) -> bool:
    gained = trend.start - trend.best
    back = trend.end - trend.best
    return (
        trend.from_start
        and not trend.still_falling
        and gained > 10.0 * max(trend.start_noise, trend.end_noise)
        and back > REGAINED_FRAC * gained
        and trend.best > 0.0
        and back > trend.best
        and _is_cross_entropy(record)
    )


def _is_cross_entropy(record: Record) -> bool:
    """Tell whether the loss is a cross entropy of labels that differ: where they do not it may be a contrast."""
    seen = [reading.ends for reading in sampled(record) if reading.ends is not None]
    forms = [form_of(ends) for ends in seen]
    if not seen or any(form is None or not form.alone or form.name not in CROSS_ENTROPIES for form in forms):
        return False
    return any(ends.target is not None and ends.target.minimum < ends.target.maximum for ends in seen)


def _sign(told: Told, start: float, end: float, how: str) -> Sign:
    above = start + 0.5 * (end - start)
    onset = next((step for step, loss in told if not loss <= above), told[-1][0])
    return Sign(
        decades=min(log10(end / start), WIDEST_DECADES) if end > start > 0.0 else 0.0,
        speaks=True,
        where=("loss",),
        when=(onset, told[-1][0]),
        message=f"the loss rises from {start:.4g} to {end:.4g} {how}",
        evidence=(Evidence(name="loss before", value=start), Evidence(name="loss after", value=end)),
    )
