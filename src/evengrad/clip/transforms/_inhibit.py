"""Bend every element of the gradients smoothly below a limit: gradient inhibition."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

from torch import Tensor

from evengrad.clip._settings import one_of, positive
from evengrad.clip.transforms._gradients import single, values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target


@final
@dataclass(frozen=True, slots=True)
class Inhibit(AbstractTransform):
    """Squash every element below `limit`: `limit * tanh(g / limit)`, or softsign `g / (1 + |g| / limit)`.

    Clipping by value without the kink: small elements pass nearly unchanged (tanh takes `(g / limit)^2 / 3` of them,
    softsign `|g| / limit`), large ones keep their order as far as the dtype tells them apart. Changes the direction.
    0 stays 0, NaN stays NaN; infinity becomes `limit` under tanh and NaN under softsign. Half precision is computed in
    float32. Real and imaginary parts are squashed each for itself; sparse gradients are coalesced.

    Args:
        limit: What no magnitude goes beyond, positive.
        curve: "tanh" or "softsign", which bends sooner and saturates more slowly.

    Raises:
        SettingError: A setting is out of range. While training: a gradient of another layout than strided or COO.

    Cost: Three reads and writes of the gradients; no host synchronisation.

    Example:
        >>> import torch
        >>> parameter = torch.nn.Parameter(torch.zeros(3))
        >>> parameter.grad = torch.tensor([0.01, -1.0, 100.0])
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> Inhibit(1.0).before_([target], {})
        {}
        >>> parameter.grad
        tensor([ 0.0100, -0.7616,  1.0000])

    Source: The smooth counterpart of clipping by value; Zhang et al., 2020, Why Gradient Clipping Accelerates Training,
    arXiv:1905.11881, has the same idea for norms. No published result shows it better than clipping.
    """

    limit: float
    _: KW_ONLY
    curve: str = "tanh"

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("limit", self.limit)
        one_of("curve", self.curve, ("tanh", "softsign"))

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Change the gradients."""
        for target in targets:
            grad = values_(target)
            if grad is not None:
                wide = single(grad)
                self._squash_(wide)
                if wide is not grad:
                    grad.copy_(wide)
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory

    def _squash_(self, grad: Tensor) -> None:
        if self.curve == "tanh":
            grad.div_(self.limit).tanh_().mul_(self.limit)
        else:
            grad.div_(grad.abs().div_(self.limit).add_(1.0))
