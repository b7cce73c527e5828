"""Clip every element of the weights after the step."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch

from evengrad.clip._settings import positive
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.clip.transforms._units import chosen, patterns


@final
@dataclass(frozen=True, slots=True)
class ClampWeights(AbstractTransform):
    """Bring every weight that is larger than `max_value` down to it, after each step; biases and gains too.

    Also those that have no gradient. The optimizer does not know: its moments go on. What is within is not changed to
    the bit, so that it does no harm after a step that was left out. Infinity becomes `max_value`, NaN stays NaN. Real
    and imaginary parts are clipped each for itself.

    Args:
        max_value: The largest magnitude of an element, positive; 0.01 in the paper.
        exclude: Names of parameters to leave alone; `*` stands for anything.

    Raises:
        SettingError: A setting is out of range.

    Cost: One read and write of the weights; no host synchronisation.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([0.1, -2.0]))
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> with torch.no_grad():
        ...     memory = ClampWeights(0.5).after_([target], {})
        >>> parameter.tolist()
        [0.10000000149011612, -0.5]

    Source: Arjovsky et al., 2017, Wasserstein GAN, arXiv:1701.07875, algorithm 1, line 7.
    """

    max_value: float
    _: KW_ONLY
    exclude: tuple[str, ...] = ()

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("max_value", self.max_value)
        patterns(self.exclude)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the gradients alone."""
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Clip the weights."""
        for target in chosen(targets, self.exclude):
            weight = torch.view_as_real(target.parameter) if target.parameter.is_complex() else target.parameter
            most = min(self.max_value, torch.finfo(weight.dtype).max)  # torch raises on what the dtype cannot hold
            weight.clamp_(-most, most)
        return memory
