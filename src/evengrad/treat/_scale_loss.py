"""Multiply the loss, so that gradients are not lost in half precision."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Literal, final

from torch import nn

from evengrad.nouns import SettingError, Task, TreatmentError
from evengrad.treat._abstract import AbstractTreatment, Change, Treated
from evengrad.treat._on_a_copy import only_for_tasks


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleLoss(AbstractTreatment):
    """Multiply the loss before backward and divide the gradients after it, in a copy of the task.

    float16 has no number between 0 and 6e-8: smaller gradients are lost, and the parts of larger ones that are. Nothing
    is changed where no part of the model is computed in float16, and bfloat16, which has float32's range, needs none.

    Args:
        scale: What to multiply with, the same at every step, positive. None for a scale that finds itself: 65536 at
            first, halved after a step whose gradients are not finite (which is skipped), doubled after 2,000 good ones.

    Raises:
        SettingError: The scale is not a positive finite number.

    Example:
        >>> ScaleLoss(scale=1024.0).label, ScaleLoss().label
        ('ScaleLoss(scale=1024.0)', 'ScaleLoss()')

    Source:
        Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    scale: float | None = None

    effort: ClassVar[int] = 2
    changes_model: ClassVar[bool] = False
    blames: ClassVar[str] = "half precision"

    def __post_init__(self) -> None:
        if self.scale is not None and not (self.scale > 0 and isfinite(self.scale)):
            raise SettingError("scale", came=repr(self.scale), wanted="a positive finite number, or None")

    def treat(self, model: nn.Module, *, seed: int = 0, batch_input: Any = None) -> Treated[nn.Module]:
        """Raise TreatmentError: a model has no loss."""
        raise only_for_tasks(self)

    def change_(self, model: nn.Module, *, seed: int, batch_input: Any) -> Change:
        """Raise TreatmentError: a model has no loss."""
        raise only_for_tasks(self)

    def treat_task(self, task: Task, *, seed: int = 0) -> Treated[Task]:
        """Scale the loss of a copy of the task: `AbstractTreatment.treat_task`."""
        if task.loss_scale is not None:
            raise TreatmentError(self.label, came=f"a task with loss_scale={task.loss_scale!r}", wanted="one without")
        if task.autocast == "bfloat16":
            raise TreatmentError(self.label, came="a task in bfloat16", wanted="float16, whose range is too narrow")
        scale: float | Literal["dynamic"] = "dynamic" if self.scale is None else float(self.scale)
        said = "65536, then what goes without overflow" if self.scale is None else f"{self.scale:g}"
        return Treated(
            subject=replace(task, loss_scale=scale),
            changes=(f"the loss is multiplied with {said}, and the gradients divided by it before the step",),
            code=_dynamic() if self.scale is None else _fixed(float(self.scale)),
        )


def _dynamic() -> str:
    return (
        "scaler = torch.amp.GradScaler(next(model.parameters()).device.type)\n"
        "# in the loop, in the place of loss.backward() and optimizer.step():\n"
        "# scaler.scale(loss).backward()\n"
        "# scaler.unscale_(optimizer)  # before anything looks at the gradients, as clipping does\n"
        "# scaler.step(optimizer)\n"
        "# scaler.update()"
    )


def _fixed(scale: float) -> str:
    return (
        "def unscale(optimizer):\n"
        "    for group in optimizer.param_groups:\n"
        "        for parameter in group['params']:\n"
        "            if parameter.grad is not None:\n"
        f"                parameter.grad.div_({scale!r})\n"
        "\n\n"
        f"# in the loop, in the place of loss.backward(): (loss * {scale!r}).backward(); unscale(optimizer)"
    )
