"""A sweep: what was tried with which setting, what came of it, and which setting is worth having."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantities:
    """What clipping did in one training, read from its steps.

    Args:
        steps: Optimizer steps that were begun.
        clipped_frac: Share of them that were clipped.
        mean_scale: Mean of the factor that was let through, 1 where nothing was clipped; the smallest where each
            parameter has its own.
        decades: Mean over the steps of how much was taken away, in powers of ten: the size of the intervention.
        largest_norm: Largest finite gradient norm before clipping; None when there was none.
        largest_let_through: Largest norm that reached the optimizer; None when nothing did.
        skipped_steps: Steps that were left out.
        spikes: Steps whose loss was above the highest of the sixteen before by more than their range.
        non_finite_steps: Steps with a loss or a gradient norm that was not finite.
    """

    steps: int = 0
    clipped_frac: float = 0.0
    mean_scale: float = 1.0
    decades: float = 0.0
    largest_norm: float | None = None
    largest_let_through: float | None = None
    skipped_steps: int = 0
    spikes: int = 0
    non_finite_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One training of a sweep.

    Args:
        label: The setting as it would be written, `none` for the task without clipping.
        policy: The clip policy, `none` for none.
        value: The policy's number that was swept; None where it has none.
        others: Everything else that was swept: name and value.
        seed: Seed of weights and loop.
        stage: `sweep`, or `confirmation` on seeds that were not used for choosing.
        ending: `finished` went through; `pruned` was stopped early because it was worse than half of the others;
            `failed` ended by itself.
        metric: What `validate` returned last; None when it never did.
        metrics: Each step at which it was asked, and what it returned.
        quantities: What clipping did.
        findings: Codes of the rules that speak at the end.
        error: Why it failed.
        duration_s: Seconds it took.
    """

    label: str
    policy: str
    value: float | None = None
    others: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    stage: Literal["sweep", "confirmation"] = "sweep"
    ending: Ending = "finished"
    metric: float | None = None
    metrics: tuple[tuple[int, float | None], ...] = ()
    quantities: Quantities = Quantities()
    findings: tuple[str, ...] = ()
    error: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRange:
    """What was swept, and from where to where.

    Args:
        name: The policy, or what else was swept (`lr`, `gain`, `weights`).
        setting: Its number.
        low: Smallest value.
        high: Largest value.
        logarithmic: Whether values are spread evenly over decades.
        reason: Where the ends come from.
    """

    name: str
    setting: str
    low: float
    high: float
    logarithmic: bool = True
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """All trainings of a sweep and what they lead to.

    Args:
        ranges: What was swept.
        points: Every training, in the order in which they were asked for.
        recommended: The label of the setting that is worth having: `none` when no clipping is needed; empty when
            nothing is known yet, or nothing trains.
        message: Why, in one or two sentences with the numbers.
        steps: Optimizer steps of one whole training.
        saved_steps: Optimizer steps that pruning has saved.
    """

    ranges: tuple[SweepRange, ...] = ()
    points: tuple[SweepPoint, ...] = ()
    recommended: str = ""
    message: str = ""
    steps: int = 0
    saved_steps: int = 0
