"""What a training of a sweep comes to: a point, with the readings that explain it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log10
from statistics import mean

from evengrad.nouns import Ending, Quantities, Reading, SweepPoint
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._plan import Plan
from evengrad.trial._tune_space import Choice

SPIKE_WINDOW = 16


def point_of(choice: Choice, plan: Plan, result: Course | Failure, ending: Ending) -> SweepPoint:
    """Sum up a training.

    Args:
        choice: Its setting.
        plan: Its plan; the stage is `sweep` or `confirmation`.
        result: What came of it.
        ending: How it ended.
    """
    trial = result.trial
    known = [metric for _, metric in trial.metrics if metric is not None]
    return SweepPoint(
        label=plan.label,
        policy=choice.policy,
        value=choice.value,
        others=choice.others,
        seed=plan.seed,
        stage="confirmation" if plan.stage == "confirmation" else "sweep",
        ending=ending,
        metric=trial.metric if trial.metric is not None else known[-1] if known and ending == "pruned" else None,
        metrics=trial.metrics,
        quantities=quantities(result.record.readings, trial.losses) if isinstance(result, Course) else Quantities(),
        findings=trial.findings,
        error=trial.error,
        duration_s=trial.duration_s,
    )


def quantities(readings: Sequence[Reading], losses: Sequence[float]) -> Quantities:
    """Sum up what clipping did.

    Args:
        readings: One for each step; the look after the last one, which no step followed, is passed over.
        losses: One for each step.
    """
    stepped = [one for one in readings if one.total_norm is not None and one.step < len(losses)]
    scales = [one.scale for one in stepped]
    finite = [one for one in stepped if one.total_norm is not None and isfinite(one.total_norm)]
    through = [one.total_norm * one.scale for one in finite if one.total_norm is not None and not one.skipped]
    bad = {at for at, loss in enumerate(losses) if not isfinite(loss)}
    bad |= {one.step for one in stepped if one not in finite}
    return Quantities(
        steps=len(losses),
        clipped_frac=mean(scale < 1 for scale in scales) if scales else 0.0,
        mean_scale=mean(scales) if scales else 1.0,
        decades=mean(-log10(max(scale, 1e-300)) for scale in scales) if scales else 0.0,
        largest_norm=max((one.total_norm for one in finite if one.total_norm is not None), default=None),
        largest_let_through=max(through, default=None),
        skipped_steps=sum(one.skipped for one in stepped),
        spikes=spikes(losses),
        non_finite_steps=len(bad),
    )


def spikes(losses: Sequence[float]) -> int:
    """Count the steps whose loss is above the highest of the sixteen before by more than their range.

    Neither the unit nor the zero of the loss matters, and noise hardly counts: of sixteen normal numbers the highest
    plus their range is 5.3 deviations above the mean.

    Example:
        >>> spikes([1.0, 1.1] * 8 + [1.15, 1.3, 1.0])
        1
    """
    found = 0
    for at in range(SPIKE_WINDOW, len(losses)):
        before = [loss for loss in losses[at - SPIKE_WINDOW : at] if isfinite(loss)]
        if before and isfinite(losses[at]) and losses[at] > 2 * max(before) - min(before):
            found += 1
    return found
