"""What a sweep may choose: clip policies with one number each, and other numbers on request, with their ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log10
from typing import Any, final

from evengrad.clip import (
    AbstractPolicy,
    ByGlobalNorm,
    ByPercentile,
    ByPolyakStep,
    ByTensorNorm,
    ByWeightNorm,
    ByZScore,
    Chain,
)
from evengrad.nouns import Record, Task
from evengrad.treat import AbstractTreatment, make
from evengrad.trial._tune_ranges import Range, gain_range, lr_range, threshold_range, weight_range

NONE = "none"
OWN = "as it is"  # the clipping that the task came with
POLICIES = ("ByGlobalNorm", "ByTensorNorm", "ByZScore", "ByPercentile", "ByWeightNorm")
OTHERS = ("lr", "gain", "weights")
DEFAULTS = (  # settings as every policy here has them: left out where one is written
    *(", norm_type=2.0", ", window=1000", ", eps=0.01"),
    *(", decay=0.97", ", warmup_steps=1", ", std_floor=1.0", "c=1.0"),
)
DIGITS = 3  # of a number that is tried: nobody pastes 0.31274811, and no metric tells it from 0.313


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A setting of everything that is swept.

    Args:
        policy: The clip policy, `none`, or `as it is`.
        value: Its number; None where it has none.
        others: Other numbers that differ from the task's own, by the names in `OTHERS`.
    """

    policy: str = NONE
    value: float | None = None
    others: tuple[tuple[str, float], ...] = ()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A policy with the number that is swept.

    Args:
        name: The class of the policy.
        range: From where to where.
        first: Values to be tried before anything is known.
        drawn: Whether more values are drawn after that, as long as there is another policy to draw. Not where the
            policy adapts so well that most values do the same.
        make: The policy for a number.
    """

    name: str
    range: Range
    first: tuple[float, ...]
    make: Callable[[float], AbstractPolicy]
    drawn: bool = True


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Everything that may be chosen.

    Args:
        arms: Policies.
        others: Other numbers, by name.
        own_clip: What the task clips with by itself; None for nothing.
    """

    arms: tuple[Arm, ...]
    others: tuple[tuple[str, Range], ...] = ()
    own_clip: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The policies that may be drawn; without clipping only where something else is swept too."""
        drawn = [arm.name for arm in self.arms if arm.drawn] or [arm.name for arm in self.arms]
        return (*((NONE,) if self.others or not self.arms else ()), *drawn)

    def arm(self, name: str) -> Arm | None:
        """Find a policy."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def planned(self) -> list[Choice]:
        """List what is tried before anything is drawn: what the policies' authors chose, and an even grid."""
        own = [Choice(policy=OWN)] if self.own_clip is not None else []
        depth = max((len(arm.first) for arm in self.arms), default=0)
        grid = [
            Choice(policy=arm.name, value=rounded(arm.first[at]))
            for at in range(depth)
            for arm in self.arms
            if at < len(arm.first)
        ]
        alone = [
            Choice(others=((name, rounded(range_.at(part))),)) for part in (0.25, 0.75) for name, range_ in self.others
        ]
        return [*own, *grid[: len(self.arms)], *alone, *grid[len(self.arms) :]]

    def clip_of(self, choice: Choice) -> Any:
        """Make what `Task.clip` is to be."""
        if choice.policy == OWN:
            return self.own_clip
        arm = self.arm(choice.policy)
        return None if arm is None or choice.value is None else arm.make(choice.value)

    def treated(self, task: Task, choice: Choice, *, seed: int) -> Task:
        """Change a copy of the task.

        Raises:
            TreatmentError: What else is swept does not apply to this task.
        """
        changed = replace(task, clip=self.clip_of(choice))
        for treatment in treatments_of(choice):
            changed = treatment.treat_task(changed, seed=seed).subject
        return changed

    def code(self, choice: Choice) -> str:
        """Write a choice as Python to paste."""
        clip = self.clip_of(choice)
        if choice.policy == OWN:
            first = "# the clipping stays as it is"
        elif clip is None:
            first = "# no clipping: steps that are not finite are still skipped\n" + _guarded("SkipNonFinite()")
        elif isinstance(clip, ByGlobalNorm):
            first = (
                "# between loss.backward() and optimizer.step()\n"
                f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={clip.max_norm!r})\n"
                "# or, in one line after model and optimizer, which also skips steps that are not finite\n"
                + _guarded(_short(repr(clip)))
            )
        else:
            first = _guarded(_short(repr(clip)))
        return "\n".join([first, *(f"# task = {one.label}.treat_task(task).subject" for one in treatments_of(choice))])

    def label(self, choice: Choice) -> str:
        """Write a choice as it would be called."""
        clip = self.clip_of(choice)
        first = choice.policy if clip is None or choice.policy == OWN else _short(repr(clip))
        return " + ".join([first, *(treatment.label for treatment in treatments_of(choice))])


def space_of(task: Task, record: Record, *, policies: tuple[str, ...], others: tuple[str, ...], failed: bool) -> Space:
    """Lay out the sweep from the readings of an untreated training.

    Args:
        task: What is tuned.
        record: Its readings without clipping.
        policies: Of `POLICIES`.
        others: Of `OTHERS`.
        failed: Whether that training diverged.
    """
    threshold = threshold_range(record, failed=failed)
    ranges = {"lr": lr_range, "gain": gain_range, "weights": weight_range}
    return Space(
        arms=tuple(_arm(name, threshold, record) for name in policies),
        others=tuple((name, ranges[name](record)) for name in others),
        own_clip=task.clip,
    )


def treatments_of(choice: Choice) -> list[AbstractTreatment]:
    """Make the treatments of what else is swept."""
    made = {
        "lr": ("ScaleLearningRate", "factor"),
        "gain": ("Reinitialize", "gain"),
        "weights": ("ConstrainWeights", "max_norm"),
    }
    return [make(made[name][0], [(made[name][1], value)]) for name, value in choice.others]


def rounded(value: float) -> float:
    """Round to the digits that are tried.

    Example:
        >>> rounded(0.0123456)
        0.0123
    """
    return float(f"{value:.{DIGITS}g}")


def distance(choice: Choice) -> float:
    """Measure how much is changed beside clipping, in powers of ten for the learning rate; the rest counts as one."""
    return sum(abs(log10(value)) if name == "lr" else 1.0 for name, value in choice.others)


def _arm(name: str, threshold: Range, record: Record) -> Arm:
    if name == "ByGlobalNorm":
        return Arm(name=name, range=threshold, first=_grid(threshold), make=ByGlobalNorm)
    if name == "ByTensorNorm":
        return Arm(name=name, range=threshold, first=(threshold.at(0.5),), make=ByTensorNorm)
    if name == "ByPercentile":
        percent = Range(
            setting="percentile", low=5.0, high=95.0, log=False, reason="of the norms so far; the paper has 10"
        )
        return Arm(name=name, range=percent, first=(10.0,), make=ByPercentile)
    if name == "ByWeightNorm":
        share = Range(setting="clipping", low=1e-3, high=1.0, reason="around the paper's 0.01 to 0.16, a decade more")
        return Arm(name=name, range=share, first=(0.01,), make=ByWeightNorm)
    listens = record.setup is not None and record.setup.optimizer == "SGD"
    deviations = Range(
        setting="z", low=0.5, high=10.0, reason="around the default 2.5; at 10 only norms of 11 means are cut"
    )
    return Arm(
        name=name, range=deviations, first=(2.5, 0.5), make=_adaptive_with_loss if listens else _adaptive, drawn=False
    )


def _grid(range_: Range) -> tuple[float, ...]:
    return tuple(range_.at(part) for part in (0.5, 0.25, 0.75, 0.0, 1.0))


def _adaptive(z: float) -> AbstractPolicy:
    return ByZScore(z=z)


def _adaptive_with_loss(z: float) -> AbstractPolicy:
    """Make what a guard takes for SGD when it is given nothing: it listens to the loss as well."""
    return Chain(ByZScore(z=z), ByPolyakStep())


def _guarded(policy: str) -> str:
    names = sorted({name for name in policy.replace("(", " ").replace(",", " ").split() if name[:1].isupper()})
    return f"from evengrad.clip import {', '.join(names)}\nguard = evengrad.Guard(model, optimizer, clip={policy})"


def _short(label: str) -> str:
    """Leave out settings that are as they always are."""
    for always in DEFAULTS:
        label = label.replace(always, "")
    return label
