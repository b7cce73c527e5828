"""Trials and the verdict as rows: what both outputs show, with the spread over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import final

from evengrad.nouns import Trial, Verdict
from evengrad.report import _clean
from evengrad.report._words import NOTHING, decades, finite, mean, mean_size, number, signed, size_spread, spread

MOST_TRIALS = 1000
FRESH = "of fresh models, which nothing has trained"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial."""

    label: str
    seed: int
    stage: str
    steps: str
    metric: str
    symptom: str
    findings: str
    error: str
    seconds: str
    losses: tuple[float, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadRow:
    """All trials of one treatment at one stage."""

    label: str
    stage: str
    trials: int
    failed: int
    metric_mean: str
    metric_spread: str
    symptom_mean: str
    symptom_spread: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRow:
    """One confirming seed: before, fresh models, after, gain; and the metrics as shares of their common range."""

    seed: str
    before: str
    fresh: str
    after: str
    gain: str
    symptom_before: str
    symptom_after: str
    before_frac: float | None
    after_frac: float | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The verdict in words and rows; the last row is the mean.

    Without the metrics of fresh models, as in stories of before they were kept, nobody knows what the gain of a seed
    is, and the rows have the difference to the untreated training instead.
    """

    outcome: str
    label: str
    message: str
    gain: str
    has_fresh: bool
    seeds: tuple[SeedRow, ...]
    mean: SeedRow
    spread_before: str
    spread_after: str
    symptom_spread_before: str
    symptom_spread_after: str


def trial_rows(trials: tuple[Trial, ...]) -> tuple[TrialRow, ...]:
    """Make the rows of the first trials."""
    return tuple(_trial_row(trial) for trial in trials[:MOST_TRIALS])


def _trial_row(trial: Trial) -> TrialRow:
    done = len(trial.losses)
    return TrialRow(
        label=_clean.name(trial.label),
        seed=trial.seed,
        stage=_clean.name(trial.stage),
        steps=str(trial.steps) if done in {0, trial.steps} else f"{done} of {trial.steps}",
        metric=number(trial.metric),
        symptom=decades(_largest(trial)),
        findings=_clean.name(", ".join(trial.findings)) or "none",
        error=_clean.sentence(trial.error),
        seconds=f"{trial.duration_s:.1f}",
        losses=trial.losses,
    )


def spread_rows(trials: tuple[Trial, ...]) -> tuple[SpreadRow, ...]:
    """Gather the trials of one treatment at one stage, in the order in which they first came."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials[:MOST_TRIALS]:
        groups.setdefault((trial.label, trial.stage), []).append(trial)
    return tuple(_spread_row(label, stage, group) for (label, stage), group in groups.items())


def _spread_row(label: str, stage: str, group: Sequence[Trial]) -> SpreadRow:
    metrics = [trial.metric for trial in group]
    symptoms = [_largest(trial) for trial in group]
    return SpreadRow(
        label=_clean.name(label),
        stage=_clean.name(stage),
        trials=len(group),
        failed=sum(1 for trial in group if trial.error or trial.metric is None),
        metric_mean=number(mean(metrics)),
        metric_spread=spread(metrics),
        symptom_mean=decades(mean_size(symptoms)),
        symptom_spread=size_spread(symptoms),
    )


def _largest(trial: Trial) -> float | None:
    sizes = [size for _, size in trial.sizes]
    return math.nan if any(math.isnan(size) for size in sizes) else max(sizes, default=None)


def proof_of(verdict: Verdict) -> Proof:
    """Make the rows of a verdict; a missing value shows as failed or as nothing."""
    before, after, fresh = verdict.metric_before, verdict.metric_after, verdict.metric_fresh
    sizes_before, sizes_after = verdict.symptoms_before, verdict.symptoms_after
    found = list(zip_longest(verdict.seeds, before, fresh, after, sizes_before, sizes_after))
    gains = [_gain_of(*metrics) for _, *metrics, _, _ in found]
    limits = _limits((*before, *after))
    rows = tuple(
        replace(
            _seed_row(str(seed) if seed is not None else NOTHING, numbers, limits),
            before=NOTHING if place >= len(before) else _or_failed(numbers[0]),
            after=NOTHING if place >= len(after) else _or_failed(numbers[2]),  # what nobody has trained has not failed
            gain=signed(gains[place]),
        )
        for place, (seed, *numbers) in enumerate(found)
    )
    means = (mean(before), mean(fresh), mean(after), mean_size(sizes_before), mean_size(sizes_after))
    # Of the pairs: the difference of the means mixes seeds where one failed.
    mean_gain = verdict.gain if fresh and verdict.gain is not None else mean(gains)
    return Proof(
        outcome=_clean.name(verdict.said),
        label=_clean.name(verdict.label),
        message=_clean.sentence(verdict.message),
        gain=_gain(verdict),
        has_fresh=bool(fresh),
        seeds=rows,
        mean=replace(_seed_row("mean", means, limits), gain=signed(mean_gain)),
        spread_before=spread(before),
        spread_after=spread(after),
        symptom_spread_before=size_spread(sizes_before),
        symptom_spread_after=size_spread(sizes_after),
    )


def _gain_of(before: float | None, fresh: float | None, after: float | None) -> float | None:
    """Gain over the better of the untreated training and the fresh models, as the verdict has it."""
    known = [value for value in (before, fresh) if value is not None]
    return None if after is None or not known else after - max(known)


def _gain(verdict: Verdict) -> str:
    if verdict.gain is None or verdict.gain_interval is None:
        return ""
    low, high = verdict.gain_interval
    interval = f"bootstrap interval {signed(low)} to {signed(high)} (95 %)"
    return f"mean gain {signed(verdict.gain)}, {interval}, over the better of the untreated training and {FRESH}"


def _or_failed(metric: float | None) -> str:
    return "failed" if metric is None else number(metric)


def _limits(metrics: Sequence[float | None]) -> tuple[float, float]:
    known = finite(metrics)
    return (min(known), max(known)) if known else (0.0, 0.0)


def _seed_row(seed: str, numbers: Sequence[float | None], limits: tuple[float, float]) -> SeedRow:
    before, fresh, after, symptom_before, symptom_after = numbers
    return SeedRow(
        seed=seed,
        before=number(before),
        fresh=number(fresh),
        after=number(after),
        gain=NOTHING,
        symptom_before=decades(symptom_before),
        symptom_after=decades(symptom_after),
        before_frac=_place(before, *limits),
        after_frac=_place(after, *limits),
    )


def _place(value: float | None, low: float, high: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return (value - low) / (high - low) if high > low else 0.5
