"""Trials and the verdict as rows: what both outputs show, with the spread over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import final

from evengrad.nouns import Trial, Verdict
from evengrad.report import _clean
from evengrad.report._words import NOTHING, decades, finite, mean, number, signed, spread

MOST_TRIALS = 1000


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
    """One confirming seed: before, after, difference; and the metrics as shares of their common range."""

    seed: str
    before: str
    after: str
    difference: str
    symptom_before: str
    symptom_after: str
    before_frac: float | None
    after_frac: float | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The verdict in words and rows; the last row is the mean."""

    outcome: str
    label: str
    message: str
    gain: str
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
        symptom=decades(_largest(trial)) if trial.symptoms else NOTHING,
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
    symptoms = [_largest(trial) for trial in group if trial.symptoms]
    return SpreadRow(
        label=_clean.name(label),
        stage=_clean.name(stage),
        trials=len(group),
        failed=sum(1 for trial in group if trial.error or trial.metric is None),
        metric_mean=number(mean(metrics)),
        metric_spread=spread(metrics),
        symptom_mean=decades(mean(symptoms)),
        symptom_spread=_decades_spread(symptoms),
    )


def _largest(trial: Trial) -> float:
    sizes = [size for _, size in trial.symptoms]
    return math.nan if any(math.isnan(size) for size in sizes) else max(sizes, default=0.0)


def _decades_spread(sizes: Sequence[float]) -> str:
    kept = finite(sizes)
    return f"{decades(min(kept))} to {decades(max(kept))}" if len(kept) > 1 else NOTHING


def proof_of(verdict: Verdict) -> Proof:
    """Make the rows of a verdict; a missing value shows as failed or as nothing."""
    before, after = verdict.metric_before, verdict.metric_after
    known = finite((*before, *after))
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    found = zip_longest(verdict.seeds, before, after, verdict.symptoms_before, verdict.symptoms_after)
    rows = tuple(
        _without(
            _seed_row(str(seed) if seed is not None else NOTHING, numbers, low, high),
            before=place >= len(before),
            after=place >= len(after),
        )
        for place, (seed, *numbers) in enumerate(found)
    )
    means = (mean(before), mean(after), mean(verdict.symptoms_before), mean(verdict.symptoms_after))
    paired = [b - a for a, b in zip(before, after, strict=False) if a is not None and b is not None]
    return Proof(
        outcome=_clean.name(verdict.outcome),
        label=_clean.name(verdict.label),
        message=_clean.sentence(verdict.message),
        gain=_gain(verdict),
        seeds=rows,
        mean=replace(
            _seed_row("mean", means, low, high),
            before=number(means[0]),
            after=number(means[1]),
            difference=signed(mean(paired)),  # of the pairs: the difference of the means mixes seeds where one failed
        ),
        spread_before=spread(before),
        spread_after=spread(after),
        symptom_spread_before=_decades_spread(verdict.symptoms_before),
        symptom_spread_after=_decades_spread(verdict.symptoms_after),
    )


def _without(row: SeedRow, *, before: bool, after: bool) -> SeedRow:
    """Take out what nobody has trained: that has not failed."""
    row = replace(row, before=NOTHING) if before else row
    return replace(row, after=NOTHING) if after else row


def _gain(verdict: Verdict) -> str:
    if verdict.gain is None or verdict.gain_interval is None:
        return ""
    low, high = verdict.gain_interval
    interval = f"bootstrap interval {signed(low)} to {signed(high)} (95 %)"
    over = "over the best of the untreated training and the fresh models of the same seed"
    return f"mean gain {signed(verdict.gain)}, {interval}, {over}"


def _seed_row(seed: str, numbers: Sequence[float | None], low: float, high: float) -> SeedRow:
    before, after, symptom_before, symptom_after = numbers
    both = before is not None and after is not None
    return SeedRow(
        seed=seed,
        before="failed" if before is None else number(before),
        after="failed" if after is None else number(after),
        difference=signed(after - before) if both and before is not None and after is not None else NOTHING,
        symptom_before=decades(symptom_before),
        symptom_after=decades(symptom_after),
        before_frac=_place(before, low, high),
        after_frac=_place(after, low, high),
    )


def _place(value: float | None, low: float, high: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return (value - low) / (high - low) if high > low else 0.5
