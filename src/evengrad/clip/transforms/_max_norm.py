"""Bound the norm of every unit's weights after the step."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch

from evengrad.clip._settings import positive
from evengrad.clip.transforms._transform import AbstractTransform, Memory, Target
from evengrad.clip.transforms._units import alike, chosen, patterns
from evengrad.measure import scale_units_, unit_norms

_SLACK = 1e-6  # what float32 may be off by after a scaling


@final
@dataclass(frozen=True, slots=True)
class MaxNorm(AbstractTransform):
    """Scale the weights of every unit whose norm is above `max_norm` back to it, after each step.

    The units are those of `ByUnitWeightNorm`; biases, gains and what a norm layer owns are left alone. Also weights
    without a gradient are bounded. The optimizer does not know: its moments go on. A unit that is within, to one part
    in a million (in half precision to the dtype's resolution), is not changed to the bit: a second time, or after a
    step that was left out, nothing happens. A unit whose norm is not finite is left as it is.

    Args:
        max_norm: The largest Euclidean norm of a unit's weights, positive; 3 to 4 in the paper.
        exclude: Names of parameters to leave alone; `*` stands for anything.

    Raises:
        SettingError: A setting is out of range.

    Cost: One read of the weights; a read and a write more of the tensors that are scaled (on an accelerator of all of
    them, since looking would wait).

    Example:
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> optimizer = torch.optim.SGD(layer.parameters())
        >>> target = Target(name="weight", parameter=layer.weight, module=layer, last=True, optimizer=optimizer,
        ...                 group=optimizer.param_groups[0])
        >>> with torch.no_grad():
        ...     memory = MaxNorm(1.0).after_([target], {})
        >>> layer.weight.data
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    Source: Srivastava et al., 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting, section 5.1
    (max-norm regularization).
    """

    max_norm: float
    _: KW_ONLY
    exclude: tuple[str, ...] = ()

    needs_host: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm)
        patterns(self.exclude)

    def init(self, targets: Sequence[Target]) -> Memory:
        """Remember nothing."""
        return {}

    def before_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Leave the gradients alone."""
        return memory

    def after_(self, targets: Sequence[Target], memory: Memory) -> Memory:
        """Scale the weights."""
        for group in alike(chosen(targets, self.exclude), gradients=False):
            if not group.whole:
                norms = unit_norms(group.tensors, group.cut)
                most = self.max_norm * (1.0 + max(_SLACK, torch.finfo(group.tensors[0].dtype).eps))
                too_long = (norms > most) & (norms < torch.inf)
                scale_units_(group.tensors, torch.where(too_long, self.max_norm / norms, 1.0), group.cut)
        return memory
