"""The loss of a step where nobody hands it over: what the backward that made the gradients began with."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor

from evengrad.guard._settings import loss_of

Loss = Tensor | float


@dataclass(kw_only=True, slots=True, weakref_slot=True)
class _Seat:
    """What is known of a parameter that is watched: which losses are in its gradient by now."""

    grad: weakref.ref[Tensor] | None = None
    version: int = -1
    losses: list[int] = field(default_factory=list)


@final
class FoundLoss:
    """Find the loss of a step: the sum of all that backwards began with whose gradients the step will see.

    Two parameters, the first and the last that have a gradient, have a hook that runs when one is accumulated. From
    there the stack leads to the call of `torch.autograd.backward` that goes on, and to the scalar it was called with;
    torch itself is left as it is. So no evaluation and no other model counts, and losses whose gradients were cleared
    before the step do not either. Where gradients are accumulated the losses are summed up, as their gradients are:
    that is the loss of the whole where each was divided by their number. Several different losses are summed up too.

    None where it cannot be known: a backward with gradients of its own choice (`y.backward(g)`), of something that is
    no scalar, inside a compiled backward, in several threads at once; `torch.autograd.grad`; nothing accumulated.

    Args:
        parameters: The guarded ones.

    Cost: Two calls of Python in each backward, about 10 microseconds each; none after `pause()`.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._seats: list[_Seat] = []
        self._hooks: list[Any] = []
        self._losses: list[tuple[Callable[[], Tensor | None], Loss | None]] = []
        self._choose(parameters)

    def take(self, parameters: Sequence[Tensor]) -> Loss | None:
        """Return the loss of the coming step and forget it: times a GradScaler's scale, on its device.

        Args:
            parameters: The guarded ones, with their gradients.
        """
        if not self._hooks:
            return None
        numbers = {number for seat in self._seats for number in seat.losses}
        found = [self._losses[number][1] for number in sorted(numbers)]
        self._losses = []
        for seat in self._seats:
            seat.losses = []
        if not found:
            self._choose([one for one in parameters if one.grad is not None] or parameters)
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return None
        total = known[0]
        for one in known[1:]:
            total = total + one
        return total

    def pause(self) -> None:
        """Let the parameters go, until `resume`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._losses = [], []

    def resume(self, parameters: Sequence[Tensor]) -> None:
        """Watch again; nothing where they are watched already."""
        if not self._hooks:
            self._choose(parameters)

    def _choose(self, parameters: Sequence[Tensor]) -> None:
        self.pause()
        trained = [one for one in parameters if one.requires_grad and one.is_leaf]
        chosen = {id(one): one for one in (*trained[:1], *trained[-1:])}
        self._seats = [_Seat() for _ in chosen]
        self._hooks = [
            one.register_post_accumulate_grad_hook(_hook(weakref.ref(self), weakref.ref(seat)))
            for one, seat in zip(chosen.values(), self._seats, strict=True)
        ]

    def accumulated(self, seat: _Seat, parameter: Tensor) -> None:
        """Take note of what is in a gradient that has just been added to."""
        grad = parameter.grad
        if grad is None:
            return
        same = seat.grad is not None and seat.grad() is grad
        if not same or grad._version != seat.version + 1:  # another tensor, or changed since: it was cleared
            seat.losses = []
        seat.grad, seat.version = weakref.ref(grad), grad._version
        seat.losses.append(self._number_of(seat, roots_of_backward()))

    def _number_of(self, seat: _Seat, roots: tuple[Tensor, ...] | None) -> int:
        """Return the place of a backward's loss among those of the step; the same for both parameters."""
        last = len(self._losses) - 1
        if roots is not None and last >= 0 and last not in seat.losses and self._losses[last][0]() is roots[0]:
            return last
        if roots is None:
            self._losses.append((_nothing, None))
        else:
            values = [loss_of(root) for root in roots]
            total = values[0]
            for value in values[1:]:
                total = total + value
            self._losses.append((weakref.ref(roots[0]), total))
        return len(self._losses) - 1


def _hook(found_loss: weakref.ref[FoundLoss], seat: weakref.ref[_Seat]) -> Callable[[Tensor], None]:
    """Make a hook that holds nothing alive: torch does not show the garbage collector what a hook holds."""

    def accumulated(parameter: Tensor) -> None:
        one, other = found_loss(), seat()
        if one is not None and other is not None and not torch.compiler.is_compiling():
            one.accumulated(other, parameter)

    hook: Callable[[Tensor], None] = torch.compiler.disable(accumulated)
    return hook


def _nothing() -> None:
    return None


def roots_of_backward() -> tuple[Tensor, ...] | None:
    """Find what the backward that goes on was called with; None where that is no loss, or cannot be known.

    On an accelerator a backward runs in a thread of its own, while the one that has called it waits.
    """
    found = _called_with(sys._getframe(1))
    if found is not None:
        return found
    own = threading.get_ident()
    frames = [frame for thread, frame in sys._current_frames().items() if thread != own]
    others = [roots for frame in frames if (roots := _called_with(frame)) is not None]
    return others[0] if len(others) == 1 else None


def _called_with(frame: FrameType | None) -> tuple[Tensor, ...] | None:
    """Look for the outermost call of `torch.autograd.backward`: a checkpoint has one of its own inside."""
    call: FrameType | None = None
    while frame is not None:
        if frame.f_code.co_name == "backward" and frame.f_globals.get("__name__") == "torch.autograd":
            call = frame
        frame = frame.f_back
    if call is None:
        return None
    given = call.f_locals
    roots = given.get("tensors")
    roots = (roots,) if isinstance(roots, Tensor) else roots
    if not isinstance(roots, tuple) or not roots or not _begins_with_one(given.get("grad_tensors")):
        return None
    return roots if all(map(_is_loss, roots)) else None


def _begins_with_one(grad_tensors: object) -> bool:
    if isinstance(grad_tensors, list | tuple):
        return all(one is None for one in grad_tensors)
    return grad_tensors is None


def _is_loss(root: object) -> bool:
    return type(root) is Tensor and root.numel() == 1 and root.is_floating_point()
