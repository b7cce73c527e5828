"""Which setting is worth having: the smallest intervention that cannot be told from the best."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from statistics import mean, stdev

from evengrad.nouns import SweepPoint
from evengrad.trial._judge import LEAST_GAIN_FRAC
from evengrad.trial._told import spread
from evengrad.trial._tune_space import NONE, Choice, distance

# Two-sided 95 % points of Student's t with 1, 2, ... degrees of freedom. The range of three differences, which is what
# a bootstrap of three comes to, leaves out 0 by chance one time in four; this one time in twenty.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def better(metrics: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """Tell whether the first metrics are larger than the second by more than the seeds explain.

    Fewer failures win. Among pairs that both went through, the mean difference must be above 1 % of the metric, and
    zero outside of its 95 % interval by Student's t.

    Args:
        metrics: One for each seed, None where the training failed.
        others: The same seeds, same order.

    Example:
        >>> better([0.9, 0.91, 0.92], [0.5, 0.52, 0.51]), better([0.9, 0.5, 0.7], [0.5, 0.9, 0.6])
        (True, False)
    """
    failed, others_failed = sum(one is None for one in metrics), sum(one is None for one in others)
    if failed != others_failed:
        return failed < others_failed
    pairs = [(a, b) for a, b in zip(metrics, others, strict=True) if a is not None and b is not None]
    differences = [a - b for a, b in pairs]
    if len(differences) < 2:
        return False
    least = LEAST_GAIN_FRAC * max(abs(value) for pair in pairs for value in pair)
    point = STUDENT[min(len(differences) - 1, len(STUDENT)) - 1]
    return mean(differences) > max(least, point * stdev(differences) / sqrt(len(differences)))


def intervention(points: Sequence[SweepPoint]) -> tuple[bool, float]:
    """Rank how much a setting changes: nothing, then how many powers of ten of the gradient it takes away."""
    first = points[0]
    beside = distance(Choice(policy=first.policy, value=first.value, others=first.others))
    changes = first.policy != NONE or bool(first.others)
    return changes, beside + mean(point.quantities.decades for point in points)


def finalists(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """List what is worth confirming: the best, then the smallest intervention as good, then the best of other policies.

    Left out is what did nothing to this training: it is no clipping under another name.

    Args:
        points: Of the sweep, those that went through.
    """
    acted = [point for point in points if point.others or point.quantities.decades or point.quantities.skipped_steps]
    if not acted:
        return []
    ranked = sorted(acted, key=lambda point: (-_metric(point), intervention([point]), point.label))
    best = ranked[0]
    smaller = [one for one in ranked if _close(one, best) and intervention([one]) < intervention([best])]
    wanted = [best, *([min(smaller, key=lambda one: intervention([one]))] if smaller else [])]
    wanted += [one for one in ranked if one.policy not in {point.policy for point in wanted}][:1]
    return wanted


def recommended(confirmed: dict[str, list[SweepPoint]]) -> tuple[str, str]:
    """Choose, and say why.

    Args:
        confirmed: Trainings on seeds that were not used for choosing, by label; the same seeds for each.

    Returns:
        The label, empty where nothing trains, and one or two sentences.
    """
    metrics = {label: [point.metric for point in points] for label, points in confirmed.items()}
    alive = {label: values for label, values in metrics.items() if any(value is not None for value in values)}
    if not alive:
        return (
            "",
            "Every training failed on the confirming seeds, with clipping and without; `repair` looks for a cause.",
        )
    best = max(alive, key=lambda label: (-sum(v is None for v in alive[label]), mean(_known(alive[label]))))
    equal = [label for label, values in alive.items() if not better(alive[best], values)]
    chosen = min(equal, key=lambda label: intervention(confirmed[label]))
    seeds = f"{len(metrics[chosen])} seeds that were not used for choosing"
    none = f"; without clipping {spread(metrics[NONE])}" if NONE in metrics and chosen != NONE else ""
    said = f"metric {spread(metrics[chosen])} on {seeds}{none}"
    against = f"; {best} reaches {spread(metrics[best])}, which cannot be told from it" if best != chosen else ""
    if chosen == NONE:
        return chosen, f"No clipping is needed: {said}{against}."
    return chosen, f"{chosen}: {said}{against}."


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _metric(point: SweepPoint) -> float:
    return -inf if point.metric is None else point.metric


def _close(point: SweepPoint, best: SweepPoint) -> bool:
    if point.metric is None or best.metric is None:
        return False
    return best.metric - point.metric <= LEAST_GAIN_FRAC * max(abs(best.metric), abs(point.metric))
