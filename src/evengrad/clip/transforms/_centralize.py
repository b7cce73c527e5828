"""Take the mean out of every unit's gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evengrad.clip.transforms._gradients import refuse_sparse
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.clip.transforms._units import alike, chosen, patterns
from evengrad.measure import Cut


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Centralize(AbstractTransform):
    """Subtract from the gradient of every unit its mean, so that each sums to 0; biases and gains are left alone.

    The units are those of `ByUnitWeightNorm`. A unit of a single element is left alone: its mean is itself, and it
    would never move again. Means are taken in float32 or wider. What is not finite spreads within its unit.

    Args:
        exclude: Names of parameters to leave alone; `*` stands for anything.

    Raises:
        SettingError: `exclude` is no tuple of names. While training: a sparse gradient, which would be filled.

    Cost: Two reads and a write of the gradients; no host synchronisation.

    Example:
        >>> layer = torch.nn.Linear(3, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[1.0, 2.0, 6.0]])
        >>> optimizer = torch.optim.SGD(layer.parameters())
        >>> target = Target(name="weight", parameter=layer.weight, module=layer, last=True, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> Centralize().before_([target], {})
        {}
        >>> layer.weight.grad
        tensor([[-2., -1.,  3.]])

    Source: Yong et al., 2020, Gradient Centralization, arXiv:2004.01461, equation 1. Differs in the units of what is
    not a linear layer or a convolution, and in leaving units of one element alone.
    """

    exclude: tuple[str, ...] = ()

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        patterns(self.exclude)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Change the gradients."""
        targets = chosen(targets, self.exclude)
        refuse_sparse(self, targets)
        for group in alike(targets, gradients=True):
            if not group.whole and group.cut.sizes[1] * group.cut.sizes[3] > 1:
                for grad in group.tensors:
                    _center_(grad, group.cut)
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the weights alone."""
        return memory


def _center_(grad: Tensor, cut: Cut) -> None:
    wide = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else None
    if cut.sizes[1] == cut.sizes[2] == 1:
        grad.sub_(grad.mean(dim=tuple(range(1, grad.dim())), keepdim=True, dtype=wide))
    else:
        means = grad.reshape(cut.sizes).mean(dim=(1, 3), dtype=wide)
        grad.sub_(cut.spread(means.view(1, -1), grad.dim())[0])
