"""How the weights of recurrent layers are drawn, gate by gate: the same rule as numbers and as code."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evengrad.treat._draws import fill_fresh_, in_half, orthogonal_line

Recurrent = nn.RNNBase | nn.RNNCellBase


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentDraw:
    """Draw hidden-to-hidden weights that neither grow nor shrink the state, and let the gates remember.

    In torch's order the gates are input, forget, cell, output (LSTM) and reset, update, new (GRU); the update gate of a
    GRU keeps the state as the forget gate of an LSTM does.

    Args:
        gain: Of the hidden-to-hidden weights: orthogonal, or the identity where the state passes a relu.
        remember: Bias of the gate that keeps the state.
        steps: Length of the sequences: then that bias is the logarithm of a time drawn evenly from 1 to steps - 1
            instead, and the input gate of an LSTM gets the negative.

    Source:
        Saxe et al. 2014, arXiv 1312.6120 (orthogonal); Le et al. 2015, arXiv 1504.00941 (identity); Jozefowicz et al.
        2015 (forget gate 1); Tallec and Ollivier 2018, arXiv 1804.11188, eq. 16 (biases from the length).
    """

    gain: float = 1.0
    remember: float = 1.0
    steps: int | None = None

    def fill_(self, layer: Recurrent, generator: torch.Generator) -> None:
        """Draw the weights and set the biases."""
        gates = gates_of(layer)
        for key, value in layer.named_parameters(recurse=False):
            if key.startswith("bias"):
                nn.init.zeros_(value)
                if gates > 1 and key.startswith("bias_ih"):
                    self._fill_gates_(value, gates, generator)
                continue
            for gate in value.chunk(1 if key.startswith("weight_hr") else gates):
                if not key.startswith("weight_hh"):
                    fill_fresh_(gate, lambda fresh: nn.init.xavier_normal_(fresh, generator=generator))
                elif is_relu_recurrent(layer):
                    nn.init.eye_(gate).mul_(self.gain)
                else:
                    fill_fresh_(gate, lambda fresh: nn.init.orthogonal_(fresh, self.gain, generator=generator))

    def _fill_gates_(self, bias: Tensor, gates: int, generator: torch.Generator) -> None:
        keep = bias.chunk(gates)[1]
        if self.steps is None:
            keep.fill_(self.remember)
            return
        fill_fresh_(keep, lambda fresh: fresh.uniform_(1.0, self._longest, generator=generator).log_())
        if gates == 4:
            bias.chunk(gates)[0].copy_(-keep)

    @property
    def _longest(self) -> float:
        return float(max(self.steps or 0, 3) - 1)

    def words(self, layer: Recurrent) -> str:
        """Say how the weights of a layer are drawn."""
        hidden = "identity" if is_relu_recurrent(layer) else "orthogonal"
        gain = "" if self.gain == 1.0 else f" with gain {self.gain:.4g}"
        return f"hidden-to-hidden weights {hidden}{gain}, input weights Xavier normal, each gate by itself" + (
            f"; biases zero{self._kept(layer)}" if _has_bias(layer) else ""
        )

    def _kept(self, layer: Recurrent) -> str:
        gate = {4: "forget gate", 3: "update gate"}.get(gates_of(layer))
        if gate is None:
            return ""
        if self.steps is None:
            return f", {gate} {self.remember:.4g}"
        return f", {gate} to remember up to {self.steps} steps"

    def code(self, names: tuple[str, ...], layer: Recurrent) -> str:
        """Write the drawing of recurrent layers of one kind as code."""
        gates = gates_of(layer)
        gain = "" if self.gain == 1.0 else f", gain={self.gain!r}"
        hidden = orthogonal_line("gate", gain, half=in_half(layer))
        if is_relu_recurrent(layer):
            hidden = "nn.init.eye_(gate)" + ("" if self.gain == 1.0 else f".mul_({self.gain!r})")
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
        return "\n".join([*lines, *self._gate_lines(gates)] if gates > 1 and _has_bias(layer) else lines)

    def _gate_lines(self, gates: int) -> list[str]:
        lines = ["            if key.startswith('bias_ih'):"]
        if self.steps is None:
            return [*lines, f"                value.chunk({gates})[1].fill_({self.remember!r})  # the state is kept"]
        lines += [
            f"                keep = value.chunk({gates})[1]  # the gates remember up to {self.steps} steps",
            f"                keep.uniform_(1.0, {self._longest!r}).log_()",
        ]
        return [*lines, "                value.chunk(4)[0].copy_(-keep)"] if gates == 4 else lines


def gates_of(layer: Recurrent) -> int:
    """Count the blocks that the weights of a recurrent layer are stacked from."""
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(layer, nn.GRU | nn.GRUCell) else 1


def is_relu_recurrent(layer: Recurrent) -> bool:
    """Tell whether the state passes a relu: then the identity keeps it, and an orthogonal matrix does not."""
    return getattr(layer, "nonlinearity", "tanh") == "relu"


def _has_bias(layer: Recurrent) -> bool:
    return any(key.startswith("bias") for key, _ in layer.named_parameters(recurse=False))
