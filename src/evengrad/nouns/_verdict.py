"""Trials and the verdict that they lead to."""

from dataclasses import dataclass
from typing import Literal

from evengrad.nouns._size import size_of

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

    @property
    def sizes(self) -> tuple[tuple[str, float], ...]:
        """The symptoms that have a size in decades, by rule code; infinite where something is not finite."""
        known = ((code, size_of(code, decades)) for code, decades in self.symptoms)
        return tuple((code, size) for code, size in known if size is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the paired trials showed.

    Args:
        outcome: `cured` only if metric and pathology both improved on every confirming seed.
        label: The treatment that was confirmed; empty when there was nothing to cure.
        metric_before: The untreated metric per confirming seed; None where the training failed.
        metric_after: The treated metric, same seeds, same order.
        metric_fresh: The floor, same seeds, same order: what fresh models reach that nothing has trained, treated or
            not, whichever is more; None where they have no metric. Empty in a verdict of before it was kept.
        symptoms_before: Size of the largest found symptom, in decades, per confirming seed; infinite where something
            is not finite, None where it could not be measured or what was found has no size.
        symptoms_after: The same after treatment.
        seeds: The confirming seeds.
        gain: Mean of the gains of the pairs, each over the better of the untreated training and the fresh models; None
            where there was nothing to compare with.
        gain_interval: Bootstrap interval of that mean, 95 %.
        message: One or two sentences with the numbers.
        interrupted: Whether the search was cut short, so that `not cured` says only that nothing was proved until then.
    """

    outcome: Outcome
    label: str = ""
    metric_before: tuple[float | None, ...] = ()
    metric_after: tuple[float | None, ...] = ()
    metric_fresh: tuple[float | None, ...] = ()
    symptoms_before: tuple[float | None, ...] = ()
    symptoms_after: tuple[float | None, ...] = ()
    seeds: tuple[int, ...] = ()
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    message: str = ""
    interrupted: bool = False

    @property
    def said(self) -> str:
        """The outcome as a reader is told it: `interrupted` where that is why it is no other.

        Example:
            >>> Verdict(outcome="not cured", interrupted=True).said, Verdict(outcome="cured").said
            ('interrupted', 'cured')
        """
        return "interrupted" if self.interrupted else self.outcome
