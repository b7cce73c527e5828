"""Trials and the verdict that they lead to."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["cured", "improved", "not cured", "was not sick", "cannot be cured by a tool"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A short training of a treated (or the untreated) task.

    Args:
        label: The treatments as they would be called, `untreated` for none.
        seed: Seed of the weights and of everything random in the loop.
        steps: Optimizer steps that were asked for.
        stage: `scout`, `halving 1`, `halving 2`, `halving 3`, `confirmation`, or `control` (on shuffled targets): the
            one in which it last went on.
        losses: Training loss at each step; ends early when the trial failed.
        metric: What `validate` returned at the end; None when the trial failed before.
        metrics: Each step at which `validate` was asked on the way, and what it returned.
        symptoms: Size of each symptom in decades, by rule code, at the last sampled steps.
        findings: Codes of the rules that speak at the end.
        error: Why the trial ended early, in words; empty when it did not.
        duration_s: Seconds it took.
    """

    label: str
    seed: int
    steps: int
    stage: str
    losses: tuple[float, ...] = ()
    metric: float | None = None
    metrics: tuple[tuple[int, float | None], ...] = ()
    symptoms: tuple[tuple[str, float], ...] = ()
    findings: tuple[str, ...] = ()
    error: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the paired trials showed.

    Args:
        outcome: `cured` only if metric and pathology both improved on every confirming seed.
        label: The treatment that was confirmed; empty when there was nothing to cure.
        metric_before: The untreated metric per confirming seed; None where the training failed.
        metric_after: The treated metric, same seeds, same order.
        symptoms_before: Size of the largest found symptom, in decades, per confirming seed.
        symptoms_after: The same after treatment.
        seeds: The confirming seeds.
        gain: Mean of the gains of the pairs, each over the best of the untreated training and what fresh models reach,
            treated and not; None where there was nothing to compare with.
        gain_interval: Bootstrap interval of that mean, 95 %.
        message: One or two sentences with the numbers.
    """

    outcome: Outcome
    label: str = ""
    metric_before: tuple[float | None, ...] = ()
    metric_after: tuple[float | None, ...] = ()
    symptoms_before: tuple[float, ...] = ()
    symptoms_after: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    message: str = ""
