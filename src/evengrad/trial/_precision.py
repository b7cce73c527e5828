"""What a step does about half precision: autocast around the forward, a scale for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, final

import torch
from torch import Tensor, nn

from evengrad.measure import scale_

FIRST_SCALE = 65536.0  # as torch's GradScaler, whose factors and interval these are
GROWTH_INTERVAL = 2000


def autocast_of(kind: Literal["bfloat16", "float16"] | None, model: nn.Module) -> AbstractContextManager[object]:
    """Return the context that forward and loss run in."""
    if kind is None:
        return nullcontext()
    device = next(iter(model.parameters())).device.type
    return torch.autocast(device, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float16)


@final
class LossScale:
    """Multiplies a loss, divides the gradients, and halves itself where they are not finite.

    `torch.amp.GradScaler` does the same around an optimizer; here the division comes before anything reads a gradient,
    and whether to step is asked of one number that is on the host anyway.
    """

    def __init__(self, setting: float | Literal["dynamic"] | None) -> None:
        self._dynamic = setting == "dynamic"
        self.value = FIRST_SCALE if setting == "dynamic" or isinstance(setting, str) else float(setting or 1.0)
        self.on = setting is not None
        self._good = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """Multiply a loss before its backward."""
        return loss * self.value if self.on else loss

    def unscale_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divide the gradients: a pass of its own, as `GradScaler` makes one before anything may read them."""
        if self.on:
            scale_([parameter.grad for parameter in parameters], 1.0 / self.value)

    def after(self, *, finite: bool) -> None:
        """Learn from a step whether its gradients were finite."""
        if not self._dynamic:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self._good == GROWTH_INTERVAL:
            self.value, self._good = self.value * 2, 0
