"""Decide on the device and never wait for it: the decision goes into the optimizer's own kernel."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from evengrad.clip import AbstractPolicy, Array, total_norm
from evengrad.guard._apply import AbstractApply, Held
from evengrad.guard._attributes import Attributes, can_fold, can_fold_now, grad_scale_of
from evengrad.guard._outcome import Decided, Given, Packed
from evengrad.guard._program import Program, order
from evengrad.measure import scale_by_


@final
class OnDevice(AbstractApply):
    """Decide on the device, by the same policies; the host hears of it when the numbers arrive.

    One factor for all goes into the fused optimizer's kernel as `grad_scale` (folded), a skip as `found_inf`. What
    cannot be folded (a factor for each parameter, an optimizer without a fused kernel, `clip_()`) is multiplied into
    the gradients, at every step. The only waits are for skips with an optimizer that is not fused, and for fused SGD
    until it has its momentum.

    Args:
        fold: Whether to fold the scale; otherwise it is always multiplied.
    """

    __slots__ = ("_attributes", "_fold", "_held")

    on_device = True

    def __init__(self, *, fold: bool) -> None:
        self._fold = fold
        self._held = Held()
        self._attributes = Attributes()

    def described(self, program: Program) -> str:
        """Say how it applies a decision and what that waits for, for the guard's repr."""
        if program.per_tensor:
            return "per-tensor multiply, the skip folded into the fused step, decided on the device: never waits"
        if self._fold:
            return "folded into the fused step, decided on the device: never waits"
        return "foreach multiply, decided on the device: waits only where the optimizer is not fused"

    def decide(self, program: Program, given: Given, fold: Sequence[Optimizer]) -> Decided:
        """Measure, decide, and change the gradients; a skip leaves every memory as it was."""
        norms_P: Tensor = program.measured(2.0)
        first = program.first
        own_P = norms_P if order(first) == 2.0 else program.measured(order(first))
        if given.by is not None:
            by = given.by.detach().reshape(1).to(norms_P)
            own_P = norms_P / by if own_P is norms_P else own_P / by
            norms_P = own_P if order(first) == 2.0 else norms_P / by
        loss_1 = _as_vector(given.loss, norms_P)
        signals = program.signals_with(loss_1)
        decision = first(own_P, program.states[0], signals)
        found = _flag(given.found_inf, norms_P)
        total = decision.norm if own_P is norms_P else total_norm(norms_P)
        own = decision.skip & ~found & torch.isfinite(total)  # a skip of the policy's own, which it may remember
        skip = decision.skip | found | ~torch.isfinite(total)
        factor = torch.where(skip, torch.ones_like(decision.scale), decision.scale)
        states: list[Any] = [(decision.state, own)]
        smallest = factor.min().reshape(1)
        unscaled = bool(program.rest) and given.by is not None
        if program.rest:
            factor, skip, smallest = self._go_on(program, given, signals, (factor, skip, smallest, states))
        program.states = [
            _select(skip & ~own, old, new) for old, (new, own) in zip(program.states, states, strict=True)
        ]
        folded = self._fold and len(factor) == 1 and bool(fold) and all(can_fold_now(optimizer) for optimizer in fold)
        if not folded:
            scale_by_([parameter.grad for parameter in program.parameters], factor)
        flags = torch.cat([skip, found & _search(given, loss_1)]).to(norms_P)
        numbers = torch.cat([norms_P, total, decision.norm, smallest, flags, loss_1])
        return Decided(
            packed=Packed(numbers, has_loss=given.loss is not None),
            skip=skip.to(torch.float32).reshape(()),
            by=(1.0 / factor).reshape(()) if folded else None,
            unscaled=unscaled,
        )

    def enter(self, decided: Decided, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step: so that it does nothing when it is to be left out."""
        assert decided.skip is not None
        if can_fold_now(optimizer):
            self._attributes.set(optimizer, grad_scale=grad_scale_of(decided, optimizer), found_inf=decided.skip)
        elif bool(decided.skip):  # waits
            self._held.hold(optimizer)
        elif can_fold(optimizer) and decided.unscaled:
            self._attributes.set(optimizer, grad_scale=None)

    def leave(self, optimizer: Optimizer) -> None:
        """Clear away what `enter` prepared."""
        self._held.release(optimizer)
        self._attributes.restore(optimizer)

    def leave_all(self) -> None:
        """Clear away what is prepared, for every optimizer."""
        self._held.release_all()
        self._attributes.restore_all()

    def _go_on(self, program: Program, given: Given, signals: Any, so_far: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run what comes after the first policy; the last factor is not yet multiplied."""
        factor, skip, smallest, states = so_far
        if given.by is not None:
            factor = factor / given.by.detach().reshape(1).to(factor)
        for number, part in enumerate(program.rest, start=1):
            if factor is not None:
                scale_by_([parameter.grad for parameter in program.parameters], factor)
                factor = None
            if isinstance(part, AbstractPolicy):
                decision = part(program.measured(order(part)), program.states[number], signals)
                skip = skip | decision.skip
                factor = torch.where(skip, torch.ones_like(decision.scale), decision.scale)
                smallest = smallest * factor.min()
                states.append((decision.state, decision.skip))
            else:
                states.append((program.transform_(number), torch.zeros_like(skip)))
        return torch.ones_like(smallest) if factor is None else factor, skip, smallest


def _as_vector(loss: Tensor | float | None, like: Tensor) -> Tensor:
    if isinstance(loss, Tensor):
        return loss.detach().reshape(1).to(like.device, torch.float32, non_blocking=True)
    return torch.full((1,), float("nan") if loss is None else loss, dtype=torch.float32, device=like.device)


def _flag(found_inf: Tensor | None, like: Tensor) -> Tensor:
    """Whether a scaler found something: a sum over devices, so that it may be above 1."""
    if found_inf is None:
        return torch.zeros(1, dtype=torch.bool, device=like.device)
    return found_inf.detach().reshape(1).to(like.device, non_blocking=True) != 0


def _search(given: Given, loss_1: Tensor) -> Tensor:
    """Whether a scaler that has found something is looking for its scale, as `is_search` says on the host."""
    fine = torch.ones(1, dtype=torch.bool, device=loss_1.device)
    if given.loss is not None:
        fine = torch.isfinite(loss_1)
    return fine if given.scale is None else fine & (given.scale.detach().reshape(1).to(loss_1) > 1.0)


def _select(skip: Tensor, old: dict[str, Array], new: dict[str, Array]) -> dict[str, Array]:
    return {name: torch.where(skip, old[name], value) if name in old else value for name, value in new.items()}
