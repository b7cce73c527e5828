"""How the weights of one layer are drawn: the same rule as numbers and as code."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import EllipsisType
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from evengrad.treat._activations import SQRT_2

Feedforward = (
    nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Scheme = Literal["he", "xavier", "orthogonal", "delta_orthogonal"]

_DELTA_LINES = """\
nn.init.zeros_(layer.weight)
    with torch.no_grad():
        for block in layer.weight.chunk(layer.groups):
            centre = (..., *(size // 2 for size in layer.kernel_size))
            block[centre] = nn.init.orthogonal_(torch.empty(block.shape[:2]), gain={gain!r}).to(block)"""


def is_feedforward(module: nn.Module) -> TypeGuard[Feedforward]:
    """Tell whether a module is a dense layer or a convolution."""
    return isinstance(module, Feedforward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Draw the weight of a dense layer or a convolution, and set its bias to zero.

    Args:
        scheme: `he` has std = gain / sqrt(fan_in), `xavier` std = gain * sqrt(2 / (fan_in + fan_out));
            `delta_orthogonal`, for convolutions, an orthogonal matrix at the kernel's centre and zeros around it.
        gain: The factor.
        fan_in: Inputs of one output element; only needed where the weight's shape does not tell: transposed
            convolutions, whose stride spreads the inputs.
        half: Whether the weight is in half precision, and `line` must draw in float32 what torch cannot draw in it.
    """

    scheme: Scheme
    gain: float
    fan_in: float | None = None
    half: bool = False

    def fill_(self, layer: Feedforward, generator: torch.Generator) -> None:
        """Draw the weight."""
        if self.scheme == "delta_orthogonal" and not isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            at: tuple[EllipsisType | int, ...] = (..., *(int(size) // 2 for size in layer.kernel_size))
            for block in layer.weight.chunk(layer.groups):
                fill_fresh_(block[at], lambda fresh: nn.init.orthogonal_(fresh, self.gain, generator=generator))
        else:
            fill_fresh_(layer.weight, lambda fresh: self._draw_(fresh, generator))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def _draw_(self, fresh: Tensor, generator: torch.Generator) -> None:
        if self.scheme == "he":
            nn.init.normal_(fresh, std=self.gain / (self.fan_in or fresh[0].numel()) ** 0.5, generator=generator)
        elif self.scheme == "xavier":
            nn.init.xavier_normal_(fresh, gain=self.gain, generator=generator)
        else:
            nn.init.orthogonal_(fresh, gain=self.gain, generator=generator)

    @property
    def words(self) -> str:
        """The rule in words."""
        names = {
            "he": "He normal",
            "xavier": "Xavier normal",
            "orthogonal": "orthogonal",
            "delta_orthogonal": "orthogonal at the centre of the kernel and zero around it,",
        }
        return f"{names[self.scheme]} with gain {self.gain:.4g}"

    @property
    def line(self) -> str:
        """The rule as a statement about `layer`."""
        if self.scheme == "he":
            return self._he_line()
        if self.scheme == "xavier":
            return f"nn.init.xavier_normal_(layer.weight, gain={self.gain!r})"
        if self.scheme == "delta_orthogonal":
            return _DELTA_LINES.format(gain=self.gain)
        return orthogonal_line("layer.weight", f", gain={self.gain!r}", half=self.half)

    def _he_line(self) -> str:
        if self.fan_in is not None:
            return f"nn.init.normal_(layer.weight, std={self.gain / self.fan_in**0.5!r})"
        if self.gain == SQRT_2:
            return "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')"
        if self.gain == 1.0:
            return "nn.init.kaiming_normal_(layer.weight, nonlinearity='linear')"
        return f"nn.init.normal_(layer.weight, std={self.gain!r} / layer.weight[0].numel() ** 0.5)"


def orthogonal_line(weight: str, settings: str, *, half: bool) -> str:
    """Write a statement that fills a weight with an orthogonal matrix, for which torch has no half precision.

    Example:
        >>> orthogonal_line("gate", ", gain=2.0", half=True)
        'gate.data.copy_(nn.init.orthogonal_(gate.data.float(), gain=2.0))'
    """
    if not half:
        return f"nn.init.orthogonal_({weight}{settings})"
    return f"{weight}.data.copy_(nn.init.orthogonal_({weight}.data.float(){settings}))"


def in_half(layer: nn.Module) -> bool:
    """Tell whether a layer has weights in half precision."""
    return any(weight.dtype in {torch.float16, torch.bfloat16} for weight in layer.parameters(recurse=False))


def fan_in_of(layer: Feedforward) -> float | None:
    """Count the inputs of one output element of a transposed convolution; None for other layers."""
    if not isinstance(layer, Transposed):
        return None
    return layer.in_channels / layer.groups * prod(layer.kernel_size) / prod(layer.stride)


def fill_attention_(layer: nn.MultiheadAttention, generator: torch.Generator) -> None:
    """Draw the projections of queries, keys and values, each by itself; `out_proj` is a dense layer of its own."""
    for key, value in layer.named_parameters(recurse=False):
        if key == "in_proj_bias":
            nn.init.zeros_(value)
            continue
        for block in value.chunk(3 if key == "in_proj_weight" else 1):
            fill_fresh_(block, lambda fresh: nn.init.xavier_normal_(fresh, generator=generator))


def attention_code(names: tuple[str, ...]) -> str:
    """Write the drawing of attention projections as code."""
    return "\n".join(
        [
            "with torch.no_grad():",
            f"    for name in {list(names)!r}:",
            "        for key, value in model.get_submodule(name).named_parameters(recurse=False):",
            "            if key == 'in_proj_bias':",
            "                nn.init.zeros_(value)",
            "                continue",
            "            for block in value.chunk(3 if key == 'in_proj_weight' else 1):",
            "                nn.init.xavier_normal_(block)",
        ]
    )


def fill_fresh_(weight: Tensor, draw_: Callable[[Tensor], object]) -> None:
    """Draw in float32 on the CPU and copy: the same numbers on every device, rounded once in half precision."""
    fresh = torch.empty(weight.shape, dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
    draw_(fresh)
    weight.copy_(fresh)
