"""Keep only the sign of every element."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from evengrad.clip.transforms._gradients import values_
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Sign(AbstractTransform):
    """Replace every element by its sign: -1, 0 or 1; with SGD that makes signSGD.

    The learning rate alone says how far a step goes, so it is to be chosen anew. 0 stays 0 and NaN stays NaN; infinity
    becomes 1. Real and imaginary parts have a sign each; sparse gradients are coalesced.

    Raises:
        SettingError: While training: a gradient of another layout than strided or COO.

    Cost: One read and write of the gradients; no host synchronisation.

    Example:
        >>> import torch
        >>> parameter = torch.nn.Parameter(torch.zeros(3))
        >>> parameter.grad = torch.tensor([0.1, 0.0, -7.0])
        >>> optimizer = torch.optim.SGD([parameter])
        >>> target = Target(name="a", parameter=parameter, module=None, last=False, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> Sign().before_([target], {})
        {}
        >>> parameter.grad
        tensor([ 1.,  0., -1.])

    Source: Bernstein et al., 2018, signSGD: Compressed Optimisation for Non-Convex Problems, arXiv:1802.04434.
    """

    needs_host: ClassVar[bool] = False

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Change the gradients."""
        for target in targets:
            grad = values_(target)
            if grad is not None:
                grad.sign_()
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory
