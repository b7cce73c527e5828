"""Make the steps smaller or larger."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, log10
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import SettingError, Task
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._optimizer_of import lrs_of, optimizer_of

# The size of a step over that of the weights, in trainings that go well.
USUAL_RATIO = 1e-3


def factor_from_update_ratio(ratio: float, target: float = USUAL_RATIO) -> float:
    """Choose the factor of the learning rate that brings the size of the steps, over that of the weights, to a target.

    The factor is 1, 3 or a power of ten of these: the ratio is a guide, not more. It is 1 where the ratio is right
    already. For steps of momentum or of Adam's kind, and near to any, the ratio grows with the learning rate in
    proportion.

    Args:
        ratio: Norm of a step over norm of the weights, the median over weight matrices and steps.
        target: What it should be: a thousandth, as a rule of thumb.

    Raises:
        SettingError: One of the two is not a positive finite number.

    Example:
        >>> factor_from_update_ratio(0.25), factor_from_update_ratio(1e-6), factor_from_update_ratio(1.2e-3)
        (0.003, 1000.0, 1.0)

    Source:
        Karpathy, CS231n course notes (2016), Neural Networks part 3, "Ratio of weights:updates"; You et al. 2017,
        arXiv 1708.03888, which sets the ratio layer by layer, to 1e-3 in its experiments.
    """
    for name, value in (("ratio", ratio), ("target", target)):
        if not (value > 0 and isfinite(value)):
            raise SettingError(name, came=repr(value), wanted="a positive finite number")
    halves = round(2 * log10(target / ratio))
    digit, power = (3, (halves - 1) // 2) if halves % 2 else (1, halves // 2)
    return float(f"{digit}e{power}")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledOptimizer:
    """Make an optimizer and scale its learning rates; can be pickled if the factory can."""

    factory: Callable[[nn.Module], Optimizer]
    factor: float

    def __call__(self, model: nn.Module) -> Optimizer:
        optimizer = self.factory(model)
        for group in optimizer.param_groups:
            for key in ("lr", "initial_lr"):
                if key in group:
                    group[key] = group[key] * self.factor
        return optimizer


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleLearningRate(AbstractTreatment):
    """Multiply the learning rate of each parameter group, in a copy of the task.

    A schedule starts from the scaled rate if it takes its start from the optimizer, as most of torch's do;
    `OneCycleLR` and `CyclicLR` set rates of their own and undo it.

    Args:
        factor: What to multiply with; a tenth is the usual first try.

    Raises:
        SettingError: The factor is 1, or not a positive finite number.

    Example:
        >>> ScaleLearningRate(factor=0.1).label
        'ScaleLearningRate(factor=0.1)'
    """

    factor: float = 0.1

    effort: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "the learning rate"

    def __post_init__(self) -> None:
        if not (self.factor > 0 and isfinite(self.factor)) or self.factor == 1:
            raise SettingError("factor", came=repr(self.factor), wanted="a positive finite number other than 1")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no learning rate."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no learning rate."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Scale the learning rates of a copy of the task: `AbstractTreatment.treat_task`."""
        factory = ScaledOptimizer(factory=task.optimizer, factor=self.factor)
        before = lrs_of(optimizer_of(task, task.optimizer, seed))
        after = lrs_of(optimizer_of(task, factory, seed))
        return Treated(
            subject=replace(task, optimizer=factory),
            changes=(f"learning rate {before} -> {after}",),
            code=(
                "# right after the optimizer is made, before a scheduler is\n"
                "for group in optimizer.param_groups:\n"
                "    for key in ('lr', 'initial_lr'):\n"
                "        if key in group:\n"
                f"            group[key] = group[key] * {self.factor!r}"
            ),
        )
