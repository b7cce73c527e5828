"""A recurrent layer that runs in chunks, with the gradient cut between them."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evengrad.treat._around import AbstractAround

TRUNCATED_CODE = """\
class Truncated(nn.Module):
    def __init__(self, layer, steps):
        super().__init__()
        self.layer, self.steps = layer, steps

    def __getattr__(self, name):
        if name == 'layer':
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)

    def forward(self, input, hx=None):
        if isinstance(input, nn.utils.rnn.PackedSequence):
            return self.packed(input, hx)
        dim = 1 if self.layer.batch_first and input.dim() == 3 else 0
        outputs = []
        for chunk in input.split(self.steps, dim):
            if outputs:
                hx = self.each(hx, torch.Tensor.detach)
            output, hx = self.layer(chunk, hx)
            outputs.append(output)
        return torch.cat(outputs, dim), hx

    def packed(self, packed, hx):
        data, sizes, order, back = packed
        if hx is not None and order is not None:
            hx = self.each(hx, lambda value: value.index_select(1, order))
        outputs, ended, start = [], [], 0
        for part in sizes.split(self.steps):
            if outputs:
                ended.insert(0, self.each(hx, lambda value: value[:, part[0]:]))
                hx = self.each(hx, lambda value: value[:, :part[0]].detach())
            end = start + int(part.sum())
            output, hx = self.layer(nn.utils.rnn.PackedSequence(data[start:end], part), hx)
            outputs.append(output.data)
            start = end
        if isinstance(hx, tuple):
            hx = tuple(torch.cat(values, 1) for values in zip(hx, *ended))
        else:
            hx = torch.cat([hx, *ended], 1)
        if back is not None:
            hx = self.each(hx, lambda value: value.index_select(1, back))
        return nn.utils.rnn.PackedSequence(torch.cat(outputs), sizes, order, back), hx

    def each(self, hx, change):
        return tuple(change(value) for value in hx) if isinstance(hx, tuple) else change(hx)

"""

State = Any  # a tensor, or the two of an LSTM


@final
class Truncated(AbstractAround):
    """Run a recurrent layer over chunks of its sequence; the state is detached between them.

    Attributes that are not its own are those of the layer: `hidden_size`, `flatten_parameters` and the like.

    Args:
        layer: An `nn.RNN`, `nn.GRU` or `nn.LSTM` that runs in one direction.
        steps: Steps in one chunk.

    Example:
        >>> sequence = torch.zeros(7, 1, 2, requires_grad=True)
        >>> Truncated(nn.GRU(2, 3), steps=3)(sequence)[0][5].sum().backward()
        >>> [bool(step.any()) for step in sequence.grad]
        [False, False, False, True, True, True, False]
    """

    def __init__(self, layer: nn.Module, steps: int) -> None:
        super().__init__(layer)
        self.steps = steps

    def forward(self, input: Tensor | PackedSequence, hx: State = None) -> tuple[Any, State]:  # noqa: A002
        """Run the layer; the arguments have the names of torch's, which may be given by keyword."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        dim = 1 if self.layer.batch_first and input.dim() == 3 else 0
        outputs: list[Tensor] = []
        for chunk in input.split(self.steps, dim):
            if outputs:
                hx = _each(hx, torch.Tensor.detach)
            output, hx = self.layer(chunk, hx)
            outputs.append(output)
        return torch.cat(outputs, dim), hx

    def _packed(self, packed: PackedSequence, hx: State) -> tuple[PackedSequence, State]:
        """Run over the steps of a packed sequence, the longest sequence first; those that end leave their state."""
        data, sizes, order, back = packed
        if hx is not None and order is not None:
            hx = _each(hx, lambda value: value.index_select(1, order))
        outputs: list[Tensor] = []
        ended: list[State] = []
        start = 0
        for part in sizes.split(self.steps):
            going_on = int(part[0])  # sizes are on the CPU: nothing is waited for
            if outputs:
                ended.insert(0, _each(hx, lambda value: value[:, going_on:]))  # noqa: B023 - called at once
                hx = _each(hx, lambda value: value[:, :going_on].detach())  # noqa: B023
            end = start + int(part.sum())
            output, hx = self.layer(PackedSequence(data[start:end], part), hx)
            outputs.append(output.data)
            start = end
        hx = _joined([hx, *ended])
        if back is not None:
            hx = _each(hx, lambda value: value.index_select(1, back))
        return PackedSequence(torch.cat(outputs), sizes, order, back), hx


def _each(hx: State, change: Callable[[Tensor], Tensor]) -> State:
    return tuple(change(value) for value in hx) if isinstance(hx, tuple) else change(hx)


def _joined(states: list[State]) -> State:
    if isinstance(states[0], tuple):
        return tuple(torch.cat(values, 1) for values in zip(*states, strict=True))
    return torch.cat(states, 1)
