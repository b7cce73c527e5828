"""Protection inside the model: activations and returning gradients that are bad stop the run or are clamped."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from evengrad.guard._protect_events import LOSS, Direction, ModuleEvent, Place, read
from evengrad.guard._protect_hooks import Hook, version_of
from evengrad.guard._protect_tensors import clamped, compact, finite_or_mask, is_judged, mapped, tensors, within
from evengrad.nouns import ModelError, NonFiniteError, SettingError, UnguardedStepWarning

LOGGER = logging.getLogger("evengrad.guard")
Action = Literal["stop", "clamp"]


@final
class Protection:
    """Stop the run at, or clamp, what is not finite inside the model: activations, and gradients that flow back.

    Every module gets a forward hook, so that the innermost one whose own output is bad is named, not those after it.
    An output that a module only hands through counts for the one that made it. What operations between modules make
    is seen where it leaves the module around them, or in the module that takes it, whose event then says that its
    inputs were bad. Gradients are seen by hooks on the outputs, which in-place operations and views do not disturb.

    "clamp" puts 0 in the place of NaN, and the bound with its sign in that of what is above it. No gradient passes
    through a clamped activation. What made it may still have an infinite derivative, and 0 times infinity is NaN: that
    is for `backward="clamp"` to catch. The gradients of the parameters themselves are not touched: a `Guard` skips
    their step. Where nothing is bad, a run is equal to the bit to one without. A module that returns its own input
    changed in place gives back a copy of it.

    Looked at are dense outputs of float16, bfloat16, float32, float64, complex64 and complex128 (real and imaginary
    part each by itself), in tuples, lists, mappings, packed sequences and dataclasses. All others are left as they are:
    integers, sparse and nested tensors, 8-bit numbers. Under autocast the dtype of each output rules.

    With a `GradScaler` do not use `backward`: infinite gradients are how it finds its scale. "stop" would end the run
    there, "clamp" would hide them from it. Hooks count in evaluation too, where a `TransformerEncoderLayer` takes its
    slow path because of them: equal up to rounding. Make the protection before `torch.compile` and expect a graph break
    at every module: what was compiled before has no hooks, which is refused where it shows, else a warning at the end.
    Attach and detach between steps, not between forward and backward. Not for `torch.func` transforms. Copies of the
    model are not protected.

    Args:
        model: Any module. A part of it may be called by itself.
        forward: "stop", "clamp" or None for the activations.
        backward: The same for the gradients.
        limit: A magnitude above which a finite number is bad too, positive. None: what the dtype can hold, 65,504 in
            float16, 3.4e38 in bfloat16 and float32. In float16 the next layer will overflow again on 65,504: 1e4 there.
        modules: Names of modules, or modules: only these are protected, with all inside them. None: all. To be used
            where an output is infinite on purpose, as scores of forbidden actions.

    Raises:
        ModelError: The model is no module, or is compiled.
        NonFiniteError: From the forward or from `backward()`, with "stop". Gradients that were there by then stay.
        SettingError: A setting is out of range, both directions are None, or a module is not in the model.

    Cost: "stop" reads every output once and waits for the device at each: a tool to find a fault with. "clamp" never
    waits; it reads every output about eight times and keeps a copy and a byte per element. Counts stay on the device.

    Example:
        >>> class Log(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.log()
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), Log(), torch.nn.Linear(2, 1))
        >>> with Protection(model, forward="clamp", backward=None) as protection:
        ...     bool(model(torch.tensor([[1.0, -1.0]])).isfinite().all())
        True
        >>> protection.events()[0].what, protection.events()[0].counts
        ('activation of 1 (Log)', '1 infinite of 2 elements, shape (1, 2), float32')
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        forward: Action | None = "stop",
        backward: Action | None = "stop",
        limit: float | None = None,
        modules: Iterable[str | nn.Module] | None = None,
    ) -> None:
        _check(model, forward, backward, limit)
        self._forward, self._backward, self._limit = forward, backward, limit
        self._places: dict[tuple[str, Direction], Place] = {}
        self._seen = WeakTensorKeyDictionary()
        self._batch: list[weakref.ref[Tensor]] = []
        self._said: set[Place] = set()
        self._called = False
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(Hook(self._see, name), with_kwargs=True)
            for name, module in _chosen(model, modules).items()
        ]
        self._count = len(self._handles)
        self._handles.append(model.register_forward_pre_hook(Hook(self._take_batch, ""), with_kwargs=True))

    def events(self) -> tuple[ModuleEvent, ...]:
        """Return what was bad so far, by module and direction, in the order in which these were first seen.

        The first time that an event is known it is logged as a warning of "evengrad.guard". `detach()` asks too.

        Cost: Waits for the device, one transfer.
        """
        events = read(self._places.values())
        for event in events:
            self._say(event)
        return events

    def detach(self) -> None:
        """Remove all hooks and log what was clamped; a second call does nothing.

        Gradients of outputs from before flow back untouched. Waits for the device once.
        """
        if not self._handles:
            return
        self._remove()
        self.events()
        if not self._called:
            warnings.warn(
                "no module of the model was called while it was protected: a model that was compiled before has no "
                "hooks, and a copy is not protected",
                UnguardedStepWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.detach()
        elif self._handles:
            self._remove()
            with contextlib.suppress(RuntimeError):  # a device that failed: the error that is under way says it better
                self.events()

    def __repr__(self) -> str:
        limit = "" if self._limit is None else f", limit={self._limit}"
        end = "" if self._handles else ", detached"
        return f"Protection(forward={self._forward!r}, backward={self._backward!r}{limit}; {self._count} modules{end})"

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._batch = []

    def _take_batch(self, _: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model."""
        if self._forward == "stop":
            self._batch = [weakref.ref(tensor) for tensor in tensors([args, kwargs])]

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook: judge what is new in the output, give back what takes its place."""
        if not self._handles:
            return None
        self._called = True
        inputs = list(tensors([args, kwargs]))
        takes = [mark.place for one in inputs if (mark := self._mark(one, any_version=True)) and mark.place]
        call = _Call(name=name, kind=type(module).__name__, inputs=inputs, outputs={id(one) for one in tensors(output)})
        result = mapped(output, partial(self._output, call))
        if call.new and name:
            for place in takes:
                place.taken_by(name)
        return None if result is output else result

    def _output(self, call: _Call, tensor: Tensor) -> Tensor:
        mark = self._mark(tensor)
        if mark is None:
            call.new = True
            if self._forward == "stop":
                self._stop(self._place(call, "forward"), tensor, call)
            elif self._forward == "clamp":
                tensor = self._clamp(call, tensor)
            mark = _Mark(version=version_of(tensor))
            if self._backward and tensor.grad_fn is not None:
                mark.place = self._place(call, "backward")
                tensor.register_hook(partial(self._gradient, mark.place))
            self._seen[tensor] = mark
        if not call.name and mark.place is not None:
            mark.place.taken_by(LOSS)
        return tensor

    def _clamp(self, call: _Call, tensor: Tensor) -> Tensor:
        small = compact(tensor)
        good = within(small, self._limit)
        place = self._place(call, "forward")
        place.count(tensor, good.expand(tensor.shape), self._limit, self._inputs_good(call))
        result = clamped(small, good, self._limit)
        return result if small is tensor else result.expand(tensor.shape)

    def _gradient(self, place: Place, gradient: Tensor) -> Tensor | None:
        """Tensor hook at an output."""
        if not self._handles or not is_judged(gradient):
            return None
        if self._backward == "stop":
            self._stop(place, gradient)
            return None
        small = compact(gradient)
        good = within(small, self._limit)
        place.count(gradient, good.expand(gradient.shape), self._limit)
        result = clamped(small, good, self._limit)
        return result if small is gradient else result.expand(gradient.shape)

    def _stop(self, place: Place, tensor: Tensor, call: _Call | None = None) -> None:
        good = within(tensor, self._limit)
        if bool(good.all()):
            return
        inputs_good = None if call is None else self._inputs_good(call)
        if inputs_good is not None and not bool(inputs_good):
            batch = [one for reference in self._batch if (one := reference()) is not None]
            place.batch_bad = not all(bool(finite_or_mask(one)) for one in batch)
        fresh = Place(place.module, place.kind, place.direction)
        fresh.takers, fresh.batch_bad = place.takers, place.batch_bad
        for each in (place, fresh):
            each.count(tensor, good, self._limit, inputs_good)
        event = read([fresh])[0]
        self._said.add(place)
        raise NonFiniteError(
            event.what,
            came=event.counts,
            wanted="finite numbers" if self._limit is None else f"numbers of at most {self._limit}",
            advice=event.origin + _advice(event),
        )

    def _inputs_good(self, call: _Call) -> Tensor | None:
        """Judge the inputs that no protected module has made; what the module changed in place was good before."""
        unknown = [one for one in call.inputs if id(one) not in call.outputs and self._mark(one) is None]
        if not unknown:
            return None
        return torch.stack([finite_or_mask(one).to(unknown[0].device) for one in unknown]).all()

    def _mark(self, tensor: Tensor, *, any_version: bool = False) -> _Mark | None:
        """Find what is known of a tensor, or of the one that it is a view of."""
        for one in (tensor, tensor._base):
            mark: _Mark | None = None if one is None else self._seen.get(one)
            if mark is not None and (any_version or mark.version == version_of(tensor)):
                return mark
        return None

    def _place(self, call: _Call, direction: Direction) -> Place:
        return self._places.setdefault((call.name, direction), Place(call.name, call.kind, direction))

    def _say(self, event: ModuleEvent) -> None:
        place = self._places[event.module, event.direction]
        if place not in self._said:
            self._said.add(place)
            LOGGER.warning("%s", event)


@dataclass(kw_only=True, slots=True)
class _Mark:
    """An output that was judged: at which version of its memory, and where its gradient is counted."""

    version: int
    place: Place | None = None


@dataclass(kw_only=True, slots=True)
class _Call:
    """One call of one module."""

    name: str
    kind: str
    inputs: list[Tensor]
    outputs: set[int]
    new: bool = False


def _advice(event: ModuleEvent) -> str:
    if event.direction == "backward" and event.dtype == "float16":
        return "; under a GradScaler this is how it finds its scale: protect forward only"
    return ""


def _chosen(model: nn.Module, modules: Iterable[str | nn.Module] | None) -> dict[str, nn.Module]:
    """Name the modules to protect; those that make weights (`torch.nn.utils.parametrize`) are none: no activations."""
    named = dict(model.named_modules())
    roots = list(named.values()) if modules is None else [_found(one, named) for one in modules]
    inside = {id(part) for root in roots for part in root.modules()}
    weights = {
        id(part)
        for one in named.values()
        if isinstance(one, nn.utils.parametrize.ParametrizationList)
        for part in one.modules()
    }
    return {name: one for name, one in named.items() if id(one) in inside - weights}


def _found(one: object, named: dict[str, nn.Module]) -> nn.Module:
    if isinstance(one, str) and one in named:
        return named[one]
    if isinstance(one, nn.Module) and any(one is other for other in named.values()):
        return one
    came = repr(one) if isinstance(one, str) else type(one).__name__
    raise SettingError("modules", came=came, wanted="names of modules of the model, or modules of it")


def _check(model: object, forward: object, backward: object, limit: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError("model", came=type(model).__name__, wanted="a torch.nn.Module")
    for module in model.modules():
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(
                "model", came="a compiled one", wanted="one as it was written", advice="compile after Protection(model)"
            )
    for name, action in (("forward", forward), ("backward", backward)):
        if action not in ("stop", "clamp", None):
            raise SettingError(name, came=repr(action), wanted='"stop", "clamp" or None')
    if forward is None and backward is None:
        raise SettingError("forward and backward", came="None for both", wanted='"stop" or "clamp" for one of them')
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (number and 0 < limit < math.inf):  # type: ignore[operator]
        raise SettingError("limit", came=repr(limit), wanted="a positive number or None")
