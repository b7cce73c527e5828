"""Modules that add their input to what they make of it; as classes and as code."""

from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.treat._around import AbstractAround

RESIDUAL_CODE = """\
class Residual(nn.Module):
    def __init__(self, *block, shortcut=None, zero_init=False):
        super().__init__()
        self.block, self.shortcut = nn.Sequential(*block), shortcut
        self.scale = nn.Parameter(next(self.block.parameters()).new_zeros(1)) if zero_init else None

    def forward(self, x):
        branch = self.block(x) if self.scale is None else self.scale * self.block(x)
        return branch + (x if self.shortcut is None else self.shortcut(x))

"""

RESIDUAL_RECURRENT_CODE = """\
class ResidualRecurrent(nn.Module):
    def __init__(self, layer, norm=None, zero_init=False):
        super().__init__()
        self.layer, self.norm = layer, norm
        self.scale = nn.Parameter(next(layer.parameters()).new_zeros(1)) if zero_init else None

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('layer'), name)

    def forward(self, x, *args, **kwargs):
        packed = isinstance(x, nn.utils.rnn.PackedSequence)
        values = x.data if packed else x
        normed = values if self.norm is None else self.norm(values)
        output, state = self.layer(x._replace(data=normed) if packed else normed, *args, **kwargs)
        branch = output.data if packed else output
        total = values + (branch if self.scale is None else self.scale * branch)
        return output._replace(data=total) if packed else total, state

"""


@final
class Residual(nn.Module):
    """Add a block's input to its output: `x + block(x)`.

    Args:
        block: Modules that are called one after the other.
        shortcut: What the input passes on its way around the block.
        zero_init: Whether the block is multiplied by a learned number that starts at zero.

    Example:
        >>> import torch
        >>> Residual(nn.ReLU())(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  4.])
    """

    def __init__(self, *block: nn.Module, shortcut: nn.Module | None = None, zero_init: bool = False) -> None:
        super().__init__()
        self.block, self.shortcut = nn.Sequential(*block), shortcut
        self.scale = nn.Parameter(next(self.block.parameters()).new_zeros(1)) if zero_init else None

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to what the block makes of it."""
        branch: Tensor = self.block(x) if self.scale is None else self.scale * self.block(x)
        return branch + (x if self.shortcut is None else self.shortcut(x))


@final
class ResidualRecurrent(AbstractAround):
    """Add the input of a recurrent layer to its output, and hand on its state as it is; packed sequences stay packed.

    What a forward reads of the layer, such as `hidden_size`, is still there.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None, zero_init: bool = False) -> None:
        super().__init__(layer)
        self.norm = norm
        self.scale = nn.Parameter(next(layer.parameters()).new_zeros(1)) if zero_init else None

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Call the layer and add."""
        packed = isinstance(x, PackedSequence)
        values = x.data if packed else x
        normed = values if self.norm is None else self.norm(values)
        output, state = self.layer(x._replace(data=normed) if packed else normed, *args, **kwargs)
        branch = output.data if packed else output
        total = values + (branch if self.scale is None else self.scale * branch)
        return output._replace(data=total) if packed else total, state
