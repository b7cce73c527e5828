"""Name the module where a value that is not finite comes from: asked only when there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from evengrad.guard._protect_hooks import Hook
from evengrad.guard._protect_tensors import finite_or_mask, is_judged, tensors
from evengrad.nouns import shortened

Where = Literal["weights", "input", "forward", "backward"]
Side = Literal["input", "output"]
MOST_ROWS = 100_000  # a loop that forgets to disarm must not fill the memory


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Culprit:
    """Where it began, as far as can be told.

    Args:
        module: The module's name; empty for the model itself.
        kind: The name of its class.
        where: weights: its own parameters or buffers are not finite. input: the batch is not. forward: its output is
            not, though its inputs are. backward: the gradient that leaves it is not, though the one that arrives is.
        sentence: The same in words.
    """

    module: str
    kind: str
    where: Where
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@final
class Blame:
    """Find the first module of a model that makes a value that is not finite.

    Three ways, from cheap to sure: from the gradients alone, which were measured anyway; from the weights; from hooks
    on the next forward and backward. Nothing is attached, and nothing costs, before `arm()`.

    Args:
        model: The model; one that is compiled has no hooks, so that `verdict()` knows nothing.
        names: The parameters as the guard names them; their order stands for the order of the forward.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = list(names)
        self._handles: list[RemovableHandle] = []
        self._forward: list[_Row] = []
        self._backward: list[_Row] = []
        self._open: dict[str, list[int]] = {}
        self._numbers = WeakTensorKeyDictionary()
        self._count = count(1)

    def from_gradients(self, bad_names: Sequence[str]) -> Culprit:
        """Infer from the parameters whose gradients are not finite where these began; reads nothing.

        On the way back a bad gradient spreads to all that comes before it in the forward. So the last bad parameter in
        forward order is the first that was hit, and the fault lies in its module or in what takes its output. When all
        are bad it is the loss, the last layer or the forward before it. Where a module's bias is good its weight's
        gradient, which is that of the output times the input, has gone bad by itself: the gradient that arrived is
        finite, for the bias's is its sum.

        It can be wrong where parameters were not registered in the order of the forward, in branches (the later branch
        is named though the fault may be in an earlier one), for tied parameters, and where a recurrent or attention
        layer spreads bad values within itself.

        Args:
            bad_names: At least one of the names.
        """
        places = {name: place for place, name in enumerate(self._names)}
        last = max(bad_names, key=lambda name: places.get(name, -1))
        module, _, parameter = last.rpartition(".")
        bad = set(bad_names)
        siblings = [name for name in self._names if name.rpartition(".")[0] == module]
        after = [name for name in self._names[places.get(last, -1) + 1 :] if name.rpartition(".")[0] != module]
        called = self._called(module)
        if parameter == "weight" and f"{module}.bias".lstrip(".") in set(siblings) - bad:
            words = (
                f"{called}: the gradient of its weight is not finite, that of its bias is: its input, or the product"
            )
        elif not after:
            words = f"{called}: the last layer's gradients are not finite: its output, its input or the loss"
        else:
            following = after[0].rpartition(".")[0] or after[0]
            words = (
                f"{called}: the first hit on the way back; {following} after it is good: it or what takes its output"
            )
        return self._culprit(module, "backward", words)

    def weights_at_fault(self) -> tuple[str, ...]:
        """Name the parameters and buffers that are not finite themselves; exact, waits for the device.

        A buffer of zeros and minus infinities is an attention mask, and no fault.
        """
        parameters = {name: value.detach().isfinite().all() for name, value in _judged(self._model.named_parameters())}
        buffers = {name: finite_or_mask(value) for name, value in _judged(self._model.named_buffers())}
        flags = _read([*parameters.values(), *buffers.values()])
        return tuple(name for name, good in zip([*parameters, *buffers], flags, strict=True) if not good)

    @property
    def armed(self) -> bool:
        """Whether hooks are attached."""
        return bool(self._handles)

    def arm(self) -> None:
        """Attach hooks for the forwards and backwards until `disarm()`; what an earlier arming saw is forgotten.

        Cost: One read of every module's inputs, outputs and their gradients; never waits for the device.
        """
        self.disarm()
        self._forward, self._backward = [], []
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks from Python
            self._handles.append(module.register_forward_pre_hook(Hook(self._enter, name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(Hook(self._leave, name), with_kwargs=True))

    def disarm(self) -> None:
        """Remove the hooks; what they saw stays for `verdict()`. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._open = {}

    def verdict(self) -> Culprit | None:
        """Name the first module of what was seen since `arm()`; None when all was finite. Waits for the device.

        In the order of the calls: the first output that is not finite. If its module's own weights are not finite:
        these. If its inputs are not: the batch, or operations between modules. Else the module. When all outputs are
        finite: on the way back, the first module that was given a finite gradient and passed on one that is not, or its
        own weights if these are not finite: some attention kernels make numbers of a NaN.
        """
        forward, backward = _bad(self._forward), _bad(self._backward)
        first = next((row for row in forward if row.side == "output"), None)
        if first is not None:
            return self._from_forward(first, [row for row in forward if row.side == "input"])
        return self._from_backward(backward) if backward else None

    def _from_forward(self, first: _Row, bad_inputs: Sequence[_Row]) -> Culprit:
        called = self._called(first.module)
        if faulty := self._faulty(first.module):
            return faulty
        if not any(row.call == first.call for row in bad_inputs):
            return self._culprit(first.module, "forward", f"{called}: its output is not finite, its inputs are")
        bad = {row.call for row in bad_inputs}
        if self._call_around("", first) in bad:
            return self._culprit("", "input", "the batch: an input of the model is not finite")
        victim = first.module
        around = _around(victim)
        while around and self._call_around(around, first) in bad:
            victim, around = around, _around(around)
        words = f"an operation in it, before {victim}, makes values that are not finite"
        return self._culprit(around, "forward", f"{self._called(around)}: {words}")

    def _from_backward(self, rows: Sequence[_Row]) -> Culprit:
        first = rows[0]
        same = [row for row in rows if row.value == first.value]
        if any(row.module == "" and row.side == "output" for row in same):
            return self._culprit("", "backward", "the loss: the gradient that it gives the model is not finite")
        hit = {row.call for row in rows if row.side == "output"}
        makers = [row.module for row in same if row.side == "input" and row.call not in hit]
        inner = [one for one in makers if not any(other.startswith(f"{one}.") or not one for other in makers)]
        inner = inner or makers
        if inner:
            words = "the gradient that leaves it is not finite, the one that arrives is"
            others = f" (or {shortened(tuple(inner[:-1]))})" if len(inner) > 1 else ""
            return self._faulty(inner[-1]) or self._culprit(
                inner[-1], "backward", f"{self._called(inner[-1])}{others}: {words}"
            )
        around = _around(first.module)
        words = f"an operation in it, after {first.module}, gives back a gradient that is not finite"
        return self._culprit(around, "backward", f"{self._called(around)}: {words}")

    def _faulty(self, module: str) -> Culprit | None:
        """Blame a module's own weights, if they are not finite."""
        owner = self._model.get_submodule(module)
        own = {f"{module}.{name}".lstrip(".") for name, _ in [*owner.named_parameters(), *owner.named_buffers()]}
        found = tuple(name for name in self.weights_at_fault() if name in own)
        words = f"{self._called(module)} is not finite itself: {shortened(found)}"
        return self._culprit(module, "weights", words) if found else None

    def _call_around(self, module: str, inner: _Row) -> int | None:
        """Find the call of a module that a call inside it belongs to: the last one before."""
        calls = [row.call for row in self._forward if row.module == module and row.side == "input"]
        return max((call for call in calls if call <= inner.call), default=None)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: the inputs as they are before the module can change them in place."""
        call = next(self._count)
        self._open.setdefault(name, []).append(call)
        self._note(name, call, "input", list(tensors([args, kwargs])))

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook."""
        calls = self._open.get(name)
        if calls:
            self._note(name, calls.pop(), "output", list(tensors(output)))

    def _note(self, module: str, call: int, side: Side, values: list[Tensor]) -> None:
        judge = finite_or_mask if side == "input" else _finite
        if values and len(self._forward) < MOST_ROWS:
            good = torch.stack([judge(value).to(values[0].device) for value in values]).all()
            self._forward.append(_Row(module=module, call=call, side=side, good=good))
        for value in values:
            if value.grad_fn is not None:
                number = self._numbers.setdefault(value, next(self._count))
                value.register_hook(partial(self._note_gradient, module, call, side, (number, value._version)))

    def _note_gradient(self, module: str, call: int, side: Side, value: tuple[int, int], gradient: Tensor) -> None:
        """Tensor hook; those of a backward after `disarm()` see nothing."""
        if self._handles and is_judged(gradient) and len(self._backward) < MOST_ROWS:
            self._backward.append(_Row(module=module, call=call, side=side, good=_finite(gradient), value=value))

    def _called(self, module: str) -> str:
        return f"{module or 'the model'} ({self._kind(module)})"

    def _kind(self, module: str) -> str:
        found = dict(self._model.named_modules()).get(module)
        return "no module" if found is None else type(found).__name__

    def _culprit(self, module: str, where: Where, sentence: str) -> Culprit:
        return Culprit(module=module, kind=self._kind(module), where=where, sentence=sentence)


@dataclass(kw_only=True, slots=True)
class _Row:
    """Whether the tensors on one side of one call of a module were finite: a flag on the device.

    `value` says which tensor a gradient belongs to: its number, and how often it was changed in place by then.
    """

    module: str
    call: int
    side: Side
    good: Tensor
    value: tuple[int, int] = (0, 0)


def _bad(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row, good in zip(rows, _read([row.good for row in rows]), strict=True) if not good]


def _read(flags: Sequence[Tensor]) -> list[bool]:
    """Read flags in one transfer per device."""
    devices: dict[torch.device, list[int]] = {}
    for place, flag in enumerate(flags):
        devices.setdefault(flag.device, []).append(place)
    found = [True] * len(flags)
    for places in devices.values():
        values = torch.stack([flags[place] for place in places]).cpu().numpy()
        for place, value in zip(places, values, strict=True):
            found[place] = bool(value)
    return found


def _finite(tensor: Tensor) -> Tensor:
    return tensor.detach().isfinite().all()


def _judged(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in named if is_judged(value))


def _around(module: str) -> str:
    return module.rpartition(".")[0]
