"""The hooks of a sampler: one on each module, one on each node of the graph whose gradient is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from evengrad.probe._sample import FIELDS, Group, Row
from evengrad.probe._sample_readings import About, Seen

# A cell in a loop over time steps: its last calls are kept, which are the nearest to the loss.
MOST_CALLS_OF_A_MODULE = 64


@final
class Round:
    """What lies between `arm()` and `disarm()`: its forward ends with the first gradient."""

    __slots__ = ("forward_over", "layers", "open", "position", "taken")

    def __init__(self) -> None:
        self.open = True
        self.forward_over = False
        self.layers: list[Layer] = []  # those that were called
        self.taken = 0
        self.position = 0

    def next_position(self) -> int:
        """Number the calls in the order of the forward pass."""
        self.position += 1
        return self.position


@final
class Call:
    """One call of a module that was sampled; as a hook of the graph it samples the gradient at the output.

    Args:
        round_: When; a gradient that comes when it is over belongs to a graph that was kept, and is not looked at.
        about: The module; None for what the first module took.
        row: Where the samples are; None when it was left to another call.
        output: The output, of which the shape is kept.
        position: In the order of the forward pass.
    """

    __slots__ = ("_about", "_arrived", "_number", "_round", "_shape", "position", "row")

    def __init__(self, round_: Round, about: About | None, row: Row, output: Tensor, position: int) -> None:
        self._round = round_
        self._about = about
        self.row: Row | None = row
        self._shape = output.shape
        self._number = output.output_nr
        self.position = position
        self._arrived = False

    def __call__(self, gradients: Tensor | tuple[Tensor | None, ...]) -> None:
        """Take the sample; the gradient goes on as it is."""
        row = self.row
        if row is None or not self._round.open:
            return
        gradient = gradients if isinstance(gradients, Tensor) else gradients[self._number]
        value = None if gradient is None else plain(gradient)
        if value is not None:
            row.gradient.take(value)
            self._arrived = self._round.forward_over = True

    def seen(self, starts: Mapping[Group, int]) -> Seen:
        """Tell where the numbers are."""
        row = self.row
        assert row is not None
        group, count = row.group, row.output.count
        return Seen(
            self._about,
            self._shape,
            count,
            row.gradient.count if self._arrived else None,
            group.width - count,
            group.padding_saturates,
            starts[group] + len(FIELDS) * row.number,
        )


@final
class Layer:
    """Forward hook of one module; in a copy of the model, or a pickle, it is a hook that does nothing.

    Args:
        see: Called at each call with this, the module's arguments and its result.
        about: The module.
    """

    __slots__ = ("_key", "_see", "about", "calls", "direct", "round", "waiting")

    def __init__(self, see: Callable[[Layer, tuple[Any, ...], Any], None], about: About) -> None:
        self._see = see
        self.round: Round | None = None
        self.about = about
        self.calls: list[Call] = []
        self.waiting: list[int] = []  # calls without gradients, by their position
        self.direct = False  # whether a call with gradients was seen
        handle = about.module.register_forward_hook(self)
        self._key = handle.id
        handle.remove()

    def attach(self) -> None:
        """Put the hook on, under the number that `register_forward_hook` once gave it: much faster than anew."""
        self.about.module._forward_hooks[self._key] = self

    def detach(self) -> None:
        """Take the hook off."""
        self.about.module._forward_hooks.pop(self._key, None)

    def enter(self, round_: Round) -> None:
        """Forget what was seen in another round."""
        self.round = round_
        self.calls = []
        self.waiting = []
        self.direct = False
        round_.layers.append(self)

    def wait(self, position: int) -> None:
        """Remember a call that may come again with gradients, in a backward."""
        self.waiting.append(position)
        del self.waiting[:-MOST_CALLS_OF_A_MODULE]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """Look at a call; a model that is compiled while the hook is on gets nothing of it into its graph."""
        if not torch.compiler.is_dynamo_compiling():
            self._see(self, args, result)

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()


@final
class Nothing:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        return None


def plain(tensor: Tensor) -> Tensor | None:
    """Give a tensor without its graph, real and imaginary parts alike; None where no sample can be taken."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        return None
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:  # sharded, traced, or somebody's own
        return None
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    value = tensor.detach() if tensor.requires_grad else tensor
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
