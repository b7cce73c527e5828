"""The hooks of a sampler: one on each module, one on each node of the graph whose gradient is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Thread, current_thread
from typing import Any, final

import torch
from torch import Tensor, nn

from evengrad.probe._call_graph import CallGraph
from evengrad.probe._sample import FIELDS, Group, Row
from evengrad.probe._sample_readings import About, Seen
from evengrad.probe._trouble import Trouble

# A cell in a loop over time steps: its last calls are kept, which are the nearest to the loss.
MOST_CALLS_OF_A_MODULE = 64


@final
class Round:
    """What lies between `arm()` and `disarm()`: its forward ends with the first gradient.

    Args:
        first_gradient: Called once, when the first gradient arrives.
    """

    __slots__ = (
        "_first_gradient", "_owner", "channels_first", "fired", "forward_over", "graph", "layers", "open", "position",
        "taken", "training", "trouble", "whole",
    )  # fmt: skip

    def __init__(self, first_gradient: Callable[[], None], trouble: Trouble) -> None:
        self.open = True
        self.trouble = trouble
        self.forward_over = False
        self.fired = False  # whether a hook has been called at all
        self.layers: list[Layer] = []  # those that were called
        self.graph = CallGraph()
        self.taken = 0
        self.position = 0
        self.channels_first = False  # whether the last layer with weights was a convolution
        self.training: bool | None = None  # the mode of the model in it; None before the first call that counts
        self.whole = False  # whether the model was called, and not parts of it only
        self._first_gradient = [first_gradient]
        self._owner: dict[str, Thread] = {}

    def next_position(self) -> int:
        """Number the calls in the order of the forward pass."""
        self.position += 1
        return self.position

    def is_elsewhere(self) -> bool:
        """Tell whether this thread is not the one that runs the forward: of several replicas the first is read."""
        thread = current_thread()  # not its number, which another one has when it is over
        return self._owner.setdefault("thread", thread) is not thread

    def see_gradient(self) -> None:
        """End the forward; may be called by several threads at once."""
        self.forward_over = True
        while self._first_gradient:
            try:
                first_gradient = self._first_gradient.pop()
            except IndexError:
                return
            first_gradient()


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

    __slots__ = (
        "_number", "_shape", "about", "alive", "arrived", "more", "number", "observations", "position", "round", "row",
        "training",
    )  # fmt: skip

    def __init__(self, round_: Round, about: About | None, row: Row, output: Tensor, position: int) -> None:
        self.round = round_
        self.about = about
        self.row: Row | None = row
        self._shape = output.shape
        self._number = output.output_nr
        self.position = position
        self.arrived = False
        self.training = True
        self.number: int | None = None  # in the graph of the calls
        self.alive: Tensor | None = None  # of a rectifier: not zero for the units that were not zero everywhere
        self.observations = 0
        self.more: dict[str, Tensor] = {}  # by the field of the reading

    def __call__(self, gradients: Tensor | tuple[Tensor | None, ...]) -> None:
        """Take the sample; the gradient goes on as it is."""
        if self.row is None or not self.round.open:
            return
        try:
            self._take(gradients, self.row)
        except Exception as err:  # whatever it is, it must not come out of the user's backward
            self.round.open = False
            self.round.trouble.note(err)

    def _take(self, gradients: Tensor | tuple[Tensor | None, ...], row: Row) -> None:
        gradient = gradients if isinstance(gradients, Tensor) else gradients[self._number]
        value = None if gradient is None else plain(gradient)
        if value is not None:
            row.gradient.take(value)
            self.arrived = True
            self.round.see_gradient()

    def seen(self, starts: Mapping[Group, int], places: Mapping[str, slice], observations: int | None = None) -> Seen:
        """Tell where the numbers are."""
        row = self.row
        assert row is not None
        group, count = row.group, row.output.count
        return Seen(
            about=self.about,
            shape=self._shape,
            elements=count,
            grad_elements=row.gradient.count if self.arrived else None,
            padding=group.width - count,
            padding_saturates=group.padding_saturates,
            start=starts[group] + len(FIELDS) * row.number,
            training=self.training,
            units=None if self.alive is None else self.alive.numel(),
            observations=observations,
            places=places,
        )


@final
class Layer:
    """What is seen of one module, and its forward hook; in a copy of the model, or a pickle, a hook that does nothing.

    Args:
        see: Called at each call with this, the module or its replica, its arguments and its result.
        about: The module, or a function that is called in one: that has no hook.
    """

    __slots__ = ("_key", "_see", "about", "calls", "count", "direct", "round", "waiting")

    def __init__(self, see: Callable[..., None], about: About) -> None:
        self._see = see
        self.round: Round | None = None
        self.about = about
        self.calls: list[Call] = []
        self.count = 0
        self.waiting: list[int] = []  # calls without gradients, by their position
        self.direct = False  # whether a call with gradients was seen
        self._key = -1 if about.module is None else key_of_hook(about.module)

    def attach(self) -> None:
        """Put the hook on, under the number that `register_forward_hook` once gave it: much faster than anew."""
        module = self.about.module
        assert module is not None
        module._forward_hooks[self._key] = self
        if self.about.with_kwargs:
            module._forward_hooks_with_kwargs[self._key] = True

    def detach(self) -> None:
        """Take the hook off."""
        module = self.about.module
        assert module is not None
        module._forward_hooks.pop(self._key, None)
        if self.about.with_kwargs:
            module._forward_hooks_with_kwargs.pop(self._key, None)

    def enter(self, round_: Round) -> None:
        """Forget what was seen in another round."""
        self.round = round_
        self.calls = []
        self.count = 0
        self.waiting = []
        self.direct = False
        round_.layers.append(self)

    def wait(self, position: int) -> None:
        """Remember a call that may come again with gradients, in a backward."""
        self.waiting.append(position)
        del self.waiting[:-MOST_CALLS_OF_A_MODULE]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """Look at a call; a model that is compiled while the hook is on gets nothing of it into its graph."""
        if not _looked_through():
            self._see(self, module, args, rest[0] if len(rest) > 1 else {}, rest[-1])

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()


@final
class Hook:
    """A hook that is fast to put on and take off; in a copy of the model, or a pickle, it does nothing.

    Args:
        module: Whose.
        run: What it does, with the module, also for its replicas, and what else a hook is called with; nothing while a
            compiler looks.
        before: Whether it comes before the forward, the first of all.
        always: Whether it comes after the forward also when that has raised.
    """

    __slots__ = ("_always", "_before", "_key", "_run", "module")

    def __init__(
        self, module: nn.Module, run: Callable[..., Any], *, before: bool = False, always: bool = False
    ) -> None:
        self.module = module
        self._run, self._before, self._always = run, before, always
        self._key = key_of_hook(module)

    def attach(self) -> None:
        """Put it on."""
        if self._before:
            hooks: Any = self.module._forward_pre_hooks  # an OrderedDict
            hooks[self._key] = self
            hooks.move_to_end(self._key, last=False)
            return
        self.module._forward_hooks[self._key] = self
        if self._always:
            self.module._forward_hooks_always_called[self._key] = True

    def detach(self) -> None:
        """Take it off."""
        hooks: Any
        module = self.module
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
            hooks.pop(self._key, None)

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Run, unless a compiler looks, or a tracer."""
        return None if _looked_through() else self._run(self.module, *given)

    def __reduce__(self) -> tuple[object, ...]:
        return Nothing, ()


@final
class Nothing:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        return None


def _looked_through() -> bool:
    """Tell whether a compiler or a tracer runs the model: what a hook does would become part of what it makes."""
    return torch.compiler.is_dynamo_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def key_of_hook(module: nn.Module) -> int:
    """Draw a number for a hook: torch hands out each once."""
    handle = module.register_forward_hook(Nothing())
    handle.remove()
    return handle.id


def plain(tensor: Tensor) -> Tensor | None:
    """Give a tensor without its graph, real and imaginary parts alike; None where no sample can be taken."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta or tensor.is_quantized:
        return None
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:  # sharded, traced, or somebody's own
        return None
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    value = tensor.detach() if tensor.requires_grad else tensor
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
