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
# A run that is over before it has learnt half of what there is to learn misses a tenth of its steps too; one that has
# learnt does not miss it. Since the symptom went it must have had the hundred steps that are the start of a training:
# before them nobody can expect much.
LEAST_FRAC_MISSED = 0.1
LEFT_FRAC = 0.5
FEWEST_AFTER = 100


def lasted(seen: Sequence[tuple[Reading, Sign]], record: Record) -> tuple[int, int] | None:
    """Find the stretch at the start of a run in which a rule spoke without a break and the loss stood still.

    The stretch ends with the last reading that speaks before the first that does not. That the loss came down
    afterwards, and only then, is what makes the symptom the reason. In a run that ended with more than half of its loss
    left a shorter stretch counts; it goes up to the first reading that is silent, for between the two the loss tells.

    Args:
        seen: What a rule said of each reading that it could judge.
        record: The run.

    Returns:
        First and last step of the stretch; None where there is none, where it is short, or where the network learnt all
        the same.
    """
    stretch = _stretch(seen)
    losses = [(one.step, one.loss) for one in record.readings if one.loss is not None and isfinite(one.loss)]
    if stretch is None or len(losses) < FEWEST_STEPS:
        return None
    first, last, silent = stretch
    total = losses[-1][0] - losses[0][0]
    if last - first >= max(FEWEST_STEPS, LEAST_FRAC * total):
        return (first, last) if _stood_still(losses, first, last) is not None else None
    if not record.complete or record.source == "guard" or losses[-1][0] - silent < FEWEST_AFTER:
        return None
    if silent - first < max(FEWEST_STEPS // 2, LEAST_FRAC_MISSED * total):
        return None
    levels = _stood_still(losses, first, silent - 1)
    return None if levels is None or not levels[1] > LEFT_FRAC * levels[0] > 0.0 else (first, silent - 1)


def _stretch(seen: Sequence[tuple[Reading, Sign]]) -> tuple[int, int, int] | None:
    """Find first and last step of the readings that speak from the first judged one on, and that of the silent one."""
    steps: list[int] = []
    for reading, sign in seen:
        if not sign.speaks:
            return (steps[0], steps[-1], reading.step) if len(steps) >= 3 else None
        steps.append(reading.step)
    return None


def _stood_still(losses: Sequence[tuple[int, float]], first: int, last: int) -> tuple[float, float] | None:
    """Give the loss at the start and at the end if it came down behind a stretch, and only there."""
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    inside = values[bisect_left(steps, first) : bisect_right(steps, last)]
    after = values[bisect_right(steps, last) :]
    if len(inside) < FEWEST_STEPS // 2 or len(after) < FEWEST_STEPS // 5:
        return None
    start, then = median(inside[: len(inside) // 5]), median(inside[-len(inside) // 5 :])
    end = median(after[-max(len(after) // 5, 5) :])
    learnt = start - end
    if learnt < PROGRESS_FRAC * abs(start) or start - then > LEARNT_FRAC * learnt:
        return None
    return start, end
