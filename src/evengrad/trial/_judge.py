"""Comparing trials, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from evengrad.nouns import Finding, Outcome, Trial, Verdict

# Metrics closer than this share of what the best candidate has gained are taken as equal, and the smaller change wins.
EQUAL_FRAC = 0.02


def ranked(trials: Sequence[tuple[Trial, int]], *, untrained: float | None) -> list[int]:
    """Rank the trials of one rung: finished before failed, then metric, then free of findings, then effort.

    Args:
        trials: Each with the effort of its treatment.
        untrained: The metric before any training, from which gains are counted.

    Returns:
        Indices into `trials`, the best first.
    """
    metrics = [trial.metric for trial, _ in trials if trial.metric is not None]
    best = max(metrics, default=0.0)
    floor = untrained if untrained is not None else min(metrics, default=0.0)
    step = max(EQUAL_FRAC * abs(best - floor), 1e-12)

    def key(index: int) -> tuple[bool, float, bool, int, int]:
        trial, effort = trials[index]
        behind = 0.0 if trial.metric is None else round((best - trial.metric) / step)
        return (trial.metric is None, behind, bool(trial.findings), effort, index)

    return sorted(range(len(trials)), key=key)


def largest_symptom(trial: Trial, codes: frozenset[str]) -> float:
    """Size of the largest of the symptoms that were found in the untreated training, in decades."""
    return max((size for code, size in trial.symptoms if code in codes), default=0.0)


def judge(
    before: Sequence[Trial], after: Sequence[Trial], findings: Sequence[Finding], *, untrained: float | None
) -> Verdict:
    """Compare paired trials, one pair per confirming seed.

    *Cured* needs both, on every seed: a metric above the untreated and the untrained one, and a treated training
    without the findings, whose largest symptom is smaller than before. *Improved* needs the metric only.
    """
    codes = frozenset(finding.code for finding in findings)
    pairs = list(zip(before, after, strict=True))
    better = [_better(one, two, untrained) for one, two in pairs]
    symptoms_before = tuple(largest_symptom(trial, codes) for trial in before)
    symptoms_after = tuple(largest_symptom(trial, codes) for trial in after)
    healthy = [
        not codes & set(trial.findings) and size_after < size_before
        for trial, size_before, size_after in zip(after, symptoms_before, symptoms_after, strict=True)
    ]
    outcome: Outcome = "not cured"
    if pairs and all(better):
        outcome = "cured" if all(healthy) else "improved"
    return Verdict(
        outcome=outcome,
        label=after[0].label if after else "",
        metric_before=tuple(trial.metric for trial in before),
        metric_after=tuple(trial.metric for trial in after),
        symptoms_before=symptoms_before,
        symptoms_after=symptoms_after,
        seeds=tuple(trial.seed for trial in after),
        message=_message(before, after, symptoms_before, symptoms_after),
    )


def _better(before: Trial, after: Trial, untrained: float | None) -> bool:
    if after.metric is None:
        return False
    floor = [value for value in (before.metric, untrained) if value is not None]
    return all(after.metric > value for value in floor)


def _message(
    before: Sequence[Trial], after: Sequence[Trial], symptoms_before: Sequence[float], symptoms_after: Sequence[float]
) -> str:
    if not after:
        return "nothing was confirmed"
    return (
        f"{after[0].label}: metric {spread([trial.metric for trial in before])} before, "
        f"{spread([trial.metric for trial in after])} after, on {len(after)} "
        f"{'seeds' if len(after) > 1 else 'seed'} that were not used for choosing; largest symptom "
        f"{mean(symptoms_before):.1f} decades before, {mean(symptoms_after):.1f} after"
    )


def spread(metrics: Sequence[float | None]) -> str:
    """Say a metric over seeds: mean and range, or that the trainings failed.

    Example:
        >>> spread([0.5, 0.7]), spread([None, None]), spread([0.5, None])
        ('0.600 (0.500 to 0.700)', 'failed', '0.500, 1 of 2 failed')
    """
    known = [value for value in metrics if value is not None]
    if not known:
        return "failed"
    failed = len(metrics) - len(known)
    said = f"{mean(known):.3f}"
    if len(known) > 1:
        said += f" ({min(known):.3f} to {max(known):.3f})"
    return said + (f", {failed} of {len(metrics)} failed" if failed else "")
