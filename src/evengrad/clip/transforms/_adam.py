"""What transforms that reach into Adam's memory share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from evengrad.clip.transforms._transform import Target
from evengrad.nouns import OptimizerError

MEAN, SQUARES, LARGEST, STEP = "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"


def refuse_others(who: object, targets: Sequence[Target]) -> None:
    """Refuse an optimizer that is not torch's Adam or AdamW (foreach, fused or neither) with a plain memory.

    Raises:
        OptimizerError: A target's is another one.
    """
    for target in targets:
        if not isinstance(target.optimizer, Adam | AdamW):
            raise OptimizerError(
                type(who).__name__,
                came=f"{type(target.optimizer).__name__}, which steps {target.name}",
                wanted="torch.optim.Adam or AdamW",
                advice="its memory is what this works with",
            )


def state_of(target: Target) -> dict[str, Any] | None:
    """Return what Adam remembers of a parameter; None before its first step."""
    state = target.optimizer.state.get(target.parameter)
    return state if state and SQUARES in state else None


def correction(step: Tensor | float, beta: float) -> Tensor | float:
    """Return `1 - beta^step`: a number where the step count is in host memory, else on its device, without a wait."""
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return torch.expm1(step * math.log(beta)).neg() if beta > 0 else torch.ones_like(step)
    past: float = beta ** float(step)
    return 1.0 - past


def real(tensor: Tensor) -> Tensor:
    """See complex numbers as pairs, as Adam does."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
