"""Make the steps smaller or larger."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import SettingError, Task
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks
from evengrad.treat._optimizer_of import lrs_of, optimizer_of


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
