"""Clip every element of the gradients: truncation."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evengrad.clip._settings import positive
from evengrad.clip.transforms._gradients import values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target


@final
@dataclass(frozen=True, slots=True)
class ByValue(AbstractTransform):
    """Bring every element that is larger than `max_value` down to it: `g = min(max(g, -max_value), max_value)`.

    Equal to the bit to `clip_grad_value_` on what that takes. Changes the direction of the gradient. Infinity becomes
    `max_value`, NaN stays NaN. Real and imaginary parts are clipped each for itself; sparse gradients are coalesced.

    Args:
        max_value: The largest magnitude of an element, positive.

    Raises:
        SettingError: `max_value` is not a positive number. While training: a gradient of another layout than strided
            or COO.

    Cost: One read and write of the gradients; no host synchronisation.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(3))
        >>> parameter.grad = torch.tensor([0.1, -2.0, 7.0])
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> ByValue(0.5).before_([target], {})
        {}
        >>> parameter.grad
        tensor([ 0.1000, -0.5000,  0.5000])

    Source: Mikolov, 2012, Statistical Language Models Based on Neural Networks (truncation of gradients);
    `torch.nn.utils.clip_grad_value_`.
    """

    max_value: float
    _: KW_ONLY

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("max_value", self.max_value)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Clip the gradients."""
        together: list[Tensor] = []
        for target in targets:
            grad = values_(target)
            if grad is None:
                continue
            most = min(self.max_value, torch.finfo(grad.dtype).max)  # torch raises on what the dtype cannot hold
            if grad.device.type == "cpu" or grad is not target.parameter.grad or most < self.max_value:
                grad.clamp_(-most, most)
            else:
                together.append(target.parameter)
        if together:
            torch.nn.utils.clip_grad_value_(together, self.max_value)
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory
