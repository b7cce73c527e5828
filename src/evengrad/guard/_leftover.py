"""Whether a gradient is still there from the step before, and is added to: `zero_grad` has been forgotten."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

MOST = 4096  # elements that are compared


@final
class Leftover:
    """Watch two gradients from after one step until the next.

    A gradient is left over where, each time that something is added to it, it is the tensor of the step before,
    written to by nobody else, with the numbers that it had: `zero_grad` at any place, with `set_to_none` or without,
    through `.data` or by hand, ends that, and so does whatever else changes it (then nobody can tell any more). So
    accumulation over micro-batches, clipping, and a backward of another loss whose gradients are cleared afterwards are
    not taken for it.
    """

    def __init__(self) -> None:
        self._seats: list[_Seat] = []
        self._hooks: list[Any] = []

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Look at the gradients as a step has left them, and watch what comes."""
        self.end()
        trained = [one for one in parameters if one.requires_grad and one.is_leaf]
        held = [one for one in trained if one.grad is not None and one.grad.layout is torch.strided]
        small = [one for one in held if one.numel() <= MOST]
        chosen = small or held or trained
        self._seats = [_Seat(one) for one in {id(one): one for one in (*chosen[:1], *chosen[-1:])}.values()]
        for seat in self._seats:
            parameter, weak = seat.parameter, weakref.ref(seat)  # torch hides what a hook holds from the collector
            self._hooks.append(parameter.register_hook(unserializable_hook(_hook(weak, _Seat.before))))
            self._hooks.append(parameter.register_post_accumulate_grad_hook(_hook(weak, _Seat.after)))

    def take(self) -> Tensor | float | None:
        """Return 1 for left over and 0 for not, on the gradients' device, and end; None where nothing was added."""
        seats = [seat for seat in self._seats if seat.added]
        self.end()
        if not seats:
            return None
        if any(seat.same is None for seat in seats):
            return 0.0
        device = seats[0].parameter.device
        return torch.stack([seat.same.to(device) for seat in seats if seat.same is not None]).all().float()

    def end(self) -> None:
        """Let the parameters go."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seats = [], []


@final
class _Seat:
    """One parameter: the gradient that it had, and whether it still has it, a 0-d bool on its device."""

    __slots__ = ("__weakref__", "added", "grad", "kept", "next", "parameter", "same", "version")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.added = False
        self.same: Tensor | None = None
        self.next: Tensor | None = None  # what `same` becomes if something is added now
        self.remember()
        if self.kept is not None:
            self.same = (self.kept != 0).any()  # zeros cannot be told from a gradient that was cleared

    def remember(self) -> None:
        """Keep what the gradient is now."""
        grad = self.parameter.grad
        plain = grad is not None and grad.layout is torch.strided and grad.numel() > 0
        self.grad = weakref.ref(grad) if plain and grad is not None else None
        self.version = grad._version if plain and grad is not None else -1
        self.kept = _some(grad).clone() if plain and grad is not None else None

    def before(self) -> None:
        """Compare what may be about to be added to with what it was: `torch.autograd.grad` comes by here too."""
        self.next = None
        if self.same is None or self.kept is None or self.grad is None:
            return
        grad = self.parameter.grad
        if grad is not None and self.grad() is grad and grad._version == self.version:
            self.next = self.same & (_some(grad) == self.kept).all()

    def after(self) -> None:
        """Take note that it has been added to."""
        self.added = True
        self.same, self.next = self.next, None
        if self.same is not None:
            self.remember()


def _hook(weak: weakref.ref[_Seat], method: Callable[[_Seat], None]) -> Callable[[Tensor], None]:
    def seen(_: Tensor) -> None:
        seat = weak()
        if seat is not None and not torch.compiler.is_compiling():
            method(seat)

    hook: Callable[[Tensor], None] = torch.compiler.disable(seen)
    return hook


def _some(grad: Tensor) -> Tensor:
    """Return a view of some elements, of all where they are few."""
    some = grad.detach()
    while some.numel() > MOST and some.dim() > 1:
        some = some.select(0, some.shape[0] // 2)
    return some[:MOST] if some.dim() else some
