"""How the weights of one layer are drawn: the same rule as numbers and as code."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, nn

from evengrad.treat._activations import SQRT_2, Scheme

Feedforward = (
    nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
Recurrent = nn.RNNBase | nn.RNNCellBase
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def is_feedforward(module: nn.Module) -> TypeGuard[Feedforward]:
    """Tell whether a module is a dense layer or a convolution."""
    return isinstance(module, Feedforward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Draw the weight of a dense layer or a convolution, and set its bias to zero.

    Args:
        scheme: `he` has std = gain / sqrt(fan_in), `xavier` std = gain * sqrt(2 / (fan_in + fan_out)).
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
        _fill_fresh_(layer.weight, lambda fresh: self._draw_(fresh, generator))
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
        names = {"he": "He normal", "xavier": "Xavier normal", "orthogonal": "orthogonal"}
        return f"{names[self.scheme]} with gain {self.gain:.4g}"

    @property
    def line(self) -> str:
        """The rule as a statement about `layer`."""
        if self.scheme == "xavier":
            return f"nn.init.xavier_normal_(layer.weight, gain={self.gain!r})"
        if self.scheme == "orthogonal":
            return orthogonal_line("layer.weight", f", gain={self.gain!r}", half=self.half)
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


def fill_recurrent_(layer: Recurrent, generator: torch.Generator) -> None:
    """Draw the weights of a recurrent layer gate by gate, as `recurrent_code` says."""
    gates = gates_of(layer)
    for key, value in layer.named_parameters(recurse=False):
        if key.startswith("bias"):
            nn.init.zeros_(value)
            if gates == 4 and key.startswith("bias_ih"):
                value.chunk(4)[1].fill_(1.0)
            continue
        for gate in value.chunk(1 if key.startswith("weight_hr") else gates):
            if not key.startswith("weight_hh"):
                _fill_fresh_(gate, lambda fresh: nn.init.xavier_normal_(fresh, generator=generator))
            elif is_relu_recurrent(layer):
                nn.init.eye_(gate)
            else:
                _fill_fresh_(gate, lambda fresh: nn.init.orthogonal_(fresh, generator=generator))


def gates_of(layer: Recurrent) -> int:
    """Count the blocks that the weights of a recurrent layer are stacked from."""
    return {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}.get(_kind(layer), 1)


def is_relu_recurrent(layer: Recurrent) -> bool:
    """Tell whether the state passes a relu: then the identity keeps it, and an orthogonal matrix does not."""
    return getattr(layer, "nonlinearity", "tanh") == "relu"


def recurrent_words(layer: Recurrent) -> str:
    """Say how the weights of a recurrent layer are drawn."""
    hidden = "identity" if is_relu_recurrent(layer) else "orthogonal"
    forget = ", forget gate 1" if gates_of(layer) == 4 else ""
    return f"hidden-to-hidden weights {hidden}, input weights Xavier normal, each gate by itself; biases zero{forget}"


def recurrent_code(names: tuple[str, ...], layer: Recurrent) -> str:
    """Write the drawing of recurrent layers of one kind as code."""
    gates = gates_of(layer)
    orthogonal = orthogonal_line("gate", "", half=in_half(layer))
    hidden = "nn.init.eye_(gate)" if is_relu_recurrent(layer) else orthogonal
    lines = [
        "with torch.no_grad():",
        f"    for name in {list(names)!r}:",
        "        for key, value in model.get_submodule(name).named_parameters(recurse=False):",
        f"            for gate in value.chunk(1 if key.startswith('weight_hr') else {gates}):",
        "                if key.startswith('weight_hh'):",
        f"                    {hidden}",
        "                elif key.startswith('weight_'):",
        "                    nn.init.xavier_normal_(gate)",
        "                else:",
        "                    nn.init.zeros_(gate)",
    ]
    if gates == 4:
        lines += [
            "            if key.startswith('bias_ih'):",
            "                value.chunk(4)[1].fill_(1.0)  # the forget gate starts open",
        ]
    return "\n".join(lines)


def fill_attention_(layer: nn.MultiheadAttention, generator: torch.Generator) -> None:
    """Draw the projections of queries, keys and values, each by itself; `out_proj` is a dense layer of its own."""
    for key, value in layer.named_parameters(recurse=False):
        if key == "in_proj_bias":
            nn.init.zeros_(value)
            continue
        for block in value.chunk(3 if key == "in_proj_weight" else 1):
            _fill_fresh_(block, lambda fresh: nn.init.xavier_normal_(fresh, generator=generator))


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


def _kind(layer: Recurrent) -> str:
    kinds = (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)
    return next((kind.__name__ for kind in kinds if isinstance(layer, kind)), "RNN")


def _fill_fresh_(weight: Tensor, draw_: Callable[[Tensor], object]) -> None:
    """Draw in float32 on the CPU and copy: the same numbers on every device, rounded once in half precision."""
    fresh = torch.empty(weight.shape, dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
    draw_(fresh)
    weight.copy_(fresh)
