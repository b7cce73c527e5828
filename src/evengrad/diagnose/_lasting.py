"""A symptom that went away again, after a stretch in which nothing was learnt: harm that the end of the run hides."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import isfinite
from statistics import median

from evengrad.diagnose._abstract import Sign
from evengrad.nouns import Reading, Record

# A run that has spent a fifth of its steps so has lost what a user would want back; a shorter start of a long run is
# what warm-ups and curricula cost as well.
LEAST_FRAC = 0.2
FEWEST_STEPS = 50
# Nothing was learnt: less than a tenth of what was learnt in all, by the end.
LEARNT_FRAC = 0.1
# Something was learnt in the end: losses this share of the start apart are not the noise of a median.
PROGRESS_FRAC = 0.05


def lasted(seen: Sequence[tuple[Reading, Sign]], record: Record) -> tuple[int, int] | None:
    """Find the stretch at the start of a run in which a rule spoke without a break and the loss stood still.

    The stretch ends with the last reading that speaks before the first that does not. That the loss came down
    afterwards, and only then, is what makes the symptom the reason.

    Args:
        seen: What a rule said of each reading that it could judge.
        record: The run.

    Returns:
        First and last step of the stretch; None where there is none, where it is short, or where the network learnt all
        the same.
    """
    stretch = _stretch(seen)
    if stretch is None:
        return None
    first, last = stretch
    losses = [(one.step, one.loss) for one in record.readings if one.loss is not None and isfinite(one.loss)]
    if len(losses) < FEWEST_STEPS or last - first < FEWEST_STEPS:
        return None
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    if last - first < LEAST_FRAC * (steps[-1] - steps[0]):
        return None
    inside = values[bisect_left(steps, first) : bisect_right(steps, last)]
    after = values[bisect_right(steps, last) :]
    if len(inside) < FEWEST_STEPS // 2 or len(after) < FEWEST_STEPS // 5:
        return None
    start, then = median(inside[: len(inside) // 5]), median(inside[-len(inside) // 5 :])
    end = median(after[-max(len(after) // 5, 5) :])
    learnt = start - end
    if learnt < PROGRESS_FRAC * abs(start) or start - then > LEARNT_FRAC * learnt:
        return None
    return first, last


def _stretch(seen: Sequence[tuple[Reading, Sign]]) -> tuple[int, int] | None:
    """Find first and last step of the readings that speak before the first that is silent, from the first judged on."""
    steps = []
    for reading, sign in seen:
        if not sign.speaks:
            break
        steps.append(reading.step)
    return (steps[0], steps[-1]) if len(steps) >= 3 and len(steps) < len(seen) else None
