"""Bound the gradient of each step."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, final

from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGradients(AbstractTreatment):
    """Bound the norm of all gradients together, in a copy of the task.

    Replaces the clipping that the task has. Keeps single huge gradients from throwing the weights away; does nothing
    against a forward pass that overflows.

    Args:
        max_norm: The largest norm that is let through. 1 is what most published recipes use.

    Raises:
        SettingError: The norm is not a positive finite number.

    Example:
        >>> ClipGradients(max_norm=0.5).label
        'ClipGradients(max_norm=0.5)'

    Source:
        Pascanu et al. 2013, arXiv 1211.5063, algorithm 1.
    """

    max_norm: float = 1.0

    effort: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "single huge gradients"

    def __post_init__(self) -> None:
        if not (self.max_norm > 0 and isfinite(self.max_norm)):
            raise SettingError("max_norm", came=repr(self.max_norm), wanted="a positive finite number")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no clipping."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no clipping."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Set the clipping of a copy of the task: `AbstractTreatment.treat_task`."""
        if isinstance(task.clip, int | float) and task.clip == self.max_norm:
            raise TreatmentError(self.label, came=f"a task that clips at {task.clip}", wanted="another bound")
        before = "" if task.clip is None else f", instead of {task.clip!r}"[:200]
        return Treated(
            subject=replace(task, clip=self.max_norm),
            changes=(f"the norm of all gradients together is clipped to {self.max_norm:g} at each step{before}",),
            code=(
                "# between loss.backward() and optimizer.step()\n"
                f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={self.max_norm!r})"
            ),
        )
