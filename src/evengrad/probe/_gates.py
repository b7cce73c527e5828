"""The gates of recurrent modules, computed anew from input and output at a few time steps.

A gate sees the input and the state before it, and nothing else: the first is what the module took, the second what it
gave one step earlier. Nothing here waits for the device or draws random numbers.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from evengrad.probe._statistics import apart, precise, wide

SHUT, OPEN = 0.01, 0.99
MOST_STEPS = 8
MOST_SAMPLES = 16
SHARE = 16  # of the sequence at most one in so many is computed anew
LOWER_STEPS = LOWER_SAMPLES = 4  # where the layers below the top one have to run again

GATED = (nn.LSTM, nn.GRU)
GATED_CELLS = (nn.LSTMCell, nn.GRUCell)


def gates_of(module: nn.Module, args: tuple[Any, ...], result: Any) -> Tensor | None:
    """Measure the gates of one call.

    Args:
        module: An LSTM or GRU, or a cell of one.
        args: What it was called with.
        result: What it gave.

    Returns:
        First the share of units that are shut or open at every observation, for each gate in torch's order, then the
        mean of each gate; None where the gates cannot be told: parametrized weights, dropout between layers, several
        layers in both directions or of a packed sequence, the second direction of a packed sequence.
    """
    if is_parametrized(module) or not args:
        return None
    value = args[0].data if isinstance(args[0], PackedSequence) else args[0]
    if not isinstance(value, Tensor) or value.is_meta or type(value) is not Tensor or not value.numel():
        return None
    with apart(value.device):
        if isinstance(module, GATED_CELLS):
            found = [_cell_sums(module, args)]
        elif isinstance(args[0], PackedSequence):
            found = _packed_sums(module, args[0], result[0])
        else:
            found = _sums(module, args, result[0])
        return _measured(torch.cat(found, dim=-1)) if found else None


def _measured(sums: Tensor) -> Tensor:
    """Measure gates of shape (observations, gates, units), given before their sigmoid."""
    gates = sums.sigmoid()
    stuck = ((gates < SHUT) | (gates > OPEN)).all(dim=0)
    kind = precise(gates.device)
    return torch.cat([stuck.to(kind).mean(dim=-1), gates.to(kind).mean(dim=(0, 2))])


def _gate_sums(module: nn.Module, value: Tensor, state: Tensor, suffix: str) -> Tensor:
    """Sum up input and state for the gates alone: shape (observations, gates, units)."""
    parts = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else 3
    kept = [0, 1, 3] if parts == 4 else [0, 1]
    total: Tensor | float = 0.0
    for side, given in (("ih", value), ("hh", state)):
        bias = getattr(module, f"bias_{side}{suffix}", None)
        weight = wide(getattr(module, f"weight_{side}{suffix}"))
        total = total + linear(wide(given), weight, None if bias is None else wide(bias))
    assert isinstance(total, Tensor)
    gates: Tensor = total.unflatten(-1, (parts, -1)).flatten(0, -3)[:, kept]
    return gates


def _cell_sums(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
    value, state = args[0], args[1] if len(args) > 1 else None
    state = state[0] if isinstance(state, tuple | list) else state
    value = value.reshape(-1, value.shape[-1])
    size = getattr(module, "hidden_size", 0)
    state = value.new_zeros(len(value), size) if state is None else state.reshape(-1, size)
    step = -(-len(value) // MOST_SAMPLES)
    return _gate_sums(module, value[::step], state[::step], "")


def _sums(module: Any, args: tuple[Any, ...], output: Tensor) -> list[Tensor]:
    """Compute the gates of the top layer, in each direction."""
    value = args[0]
    if value.ndim == 2:
        value, output = value.unsqueeze(1), output.unsqueeze(1)
    elif module.batch_first:
        value, output = value.transpose(0, 1), output.transpose(0, 1)
    steps, samples = value.shape[:2]
    if steps < 2:
        return []
    if module.num_layers > 1:
        return _top_sums(module, args, value, output)
    wanted = max(2, min(MOST_SAMPLES, steps * samples // (SHARE * MOST_STEPS)))
    at, of = slice(None, None, -(-(steps - 1) // MOST_STEPS)), slice(None, None, -(-samples // wanted))
    size = output.shape[-1] // (2 if module.bidirectional else 1)
    found = [_gate_sums(module, value[1:, of][at], output[:-1, of, :size][at], "_l0")]
    if module.bidirectional:
        found.append(_gate_sums(module, value[:-1, of][at], output[1:, of, size:][at], "_l0_reverse"))
    return found


def _top_sums(module: Any, args: tuple[Any, ...], value: Tensor, output: Tensor) -> list[Tensor]:
    """Run the layers below the top one again, for the first steps of a few samples."""
    if (module.dropout > 0 and module.training) or module.bidirectional or getattr(module, "proj_size", 0):
        return []
    top, of = module.num_layers - 1, slice(None, None, -(-value.shape[1] // LOWER_SAMPLES))
    value, output = value[: LOWER_STEPS + 1, of], output[: LOWER_STEPS + 1, of]
    given = args[1] if len(args) > 1 else None
    parts = given if isinstance(given, tuple | list) else (given,)
    hidden = [wide(step) for step in value.unbind()]
    for layer in range(top):
        states = [None if part is None else wide(part[layer].reshape(-1, part.shape[-1])[of]) for part in parts]
        hidden = _run(module, layer, hidden, states)
    return [_gate_sums(module, torch.stack(hidden[1:]), output[: len(hidden) - 1], f"_l{top}")]


def _run(module: Any, layer: int, values: list[Tensor], states: list[Tensor | None]) -> list[Tensor]:
    """Run one layer in one direction."""
    zeros = values[0].new_zeros(len(values[0]), module.hidden_size)
    state, memory = (zeros if one is None else one for one in (states[0], states[-1]))
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    weights = [wide(getattr(module, f"{name}_l{layer}")) for name in names]
    found = []
    for value in values:
        if isinstance(module, nn.LSTM):
            state, memory = torch.lstm_cell(value, (state, memory), *weights)
        else:
            state = torch.gru_cell(value, state, *weights)
        found.append(state)
    return found


def _packed_sums(module: Any, packed: PackedSequence, output: Any) -> list[Tensor]:
    """Compute the gates at some steps of a packed sequence: its rows lie step after step, the longest sample first."""
    if module.bidirectional or module.num_layers > 1 or not isinstance(output, PackedSequence):
        return []
    sizes = packed.batch_sizes.tolist()  # on the host already
    starts = [0, *accumulate(sizes)]
    if len(sizes) < 2:
        return []
    values, states = [], []
    for step in range(1, len(sizes), -(-(len(sizes) - 1) // MOST_STEPS)):
        count = min(sizes[step], MOST_SAMPLES)
        values.append(packed.data[starts[step] : starts[step] + count])
        states.append(output.data[starts[step - 1] : starts[step - 1] + count])
    return [_gate_sums(module, torch.cat(values), torch.cat(states), "_l0")]
