"""Measure and write down, and change nothing: a guard that only watches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from evengrad.clip import Array, total_norm
from evengrad.guard._apply import AbstractApply
from evengrad.guard._outcome import Decided, Given, Outcome, Packed, is_search
from evengrad.guard._program import Program


@final
class Watching(AbstractApply):
    """Let every step through as it comes, also one whose gradients are not finite.

    Only a GradScaler's own decision to leave a step out is written down, where a fused optimizer makes it.

    Args:
        on_device: Whether the numbers stay on an accelerator until they arrive; on a CPU they are on the host already.
    """

    __slots__ = ("on_device",)

    hands_off = True

    def __init__(self, *, on_device: bool) -> None:
        self.on_device = on_device

    def described(self, program: Program) -> str:
        """Say how it applies a decision and what that waits for, for the guard's repr."""
        return "changes nothing" + (", measured on the device: never waits" if self.on_device else "")

    def decide(self, program: Program, given: Given, fold: Sequence[Optimizer]) -> Decided:
        """Measure; the gradients stay as they are."""
        norms_P = program.measured(2.0)
        return self._late(program, given, norms_P) if self.on_device else _now(program, given, norms_P)

    def _late(self, program: Program, given: Given, norms_P: Tensor) -> Decided:
        norms_P = norms_P / _divisors(program, given, norms_P)
        zero, one = norms_P.new_zeros(1), norms_P.new_ones(1)
        found = zero if given.found_inf is None else (given.found_inf.detach().reshape(1).to(norms_P) != 0).to(norms_P)
        loss = given.loss
        if isinstance(loss, Tensor):
            loss_1 = loss.detach().reshape(1).to(norms_P.device, torch.float32, non_blocking=True)
        else:
            loss_1 = torch.full_like(one, math.nan if loss is None else loss)
        finite = one if loss is None else torch.isfinite(loss_1).to(norms_P)
        total = total_norm(norms_P)
        numbers = torch.cat([norms_P, total, total, one, found, found * finite, loss_1])
        return Decided(packed=Packed(numbers, has_loss=loss is not None), skip=found.reshape(()))

    def enter(self, decided: Decided, optimizer: Optimizer) -> None:
        """Prepare nothing."""

    def leave(self, optimizer: Optimizer) -> None:
        """Clear nothing away."""

    def leave_all(self) -> None:
        """Clear nothing away."""


def _now(program: Program, given: Given, norms_P: Array) -> Decided:
    norms_P = norms_P / _divisors(program, given, None)
    total = float(total_norm(norms_P)[0])
    found = given.found_inf is not None and bool(given.found_inf.detach().cpu().numpy().reshape(()) != 0)
    loss = given.loss
    if isinstance(loss, Tensor):
        loss = float(loss.detach().to("cpu", torch.float64).numpy().reshape(()))
    outcome = Outcome(
        norms_P=norms_P,
        total=total,
        norm=total,
        scale=1.0,
        skipped=found,
        overflow=found and is_search(loss, None),
        loss=loss,
    )
    return Decided(outcome=outcome)


def _divisors(program: Program, given: Given, like: Tensor | None) -> Array:
    """Return what each gradient is multiplied with by now: those of an optimizer that steps later may be still."""
    by = given.by
    if by is None or not given.scaled:
        return np.float32(1.0) if like is None else like.new_ones(1)
    flags = [id(target.optimizer) in given.scaled for target in program.targets]
    if like is None:
        scale = np.float32(by.detach().to("cpu", torch.float64).numpy().reshape(()))
        return np.where(flags, scale, np.float32(1.0))
    scale_1 = by.detach().reshape(1).to(like)
    if all(flags):
        return scale_1
    return torch.where(torch.tensor(flags).to(like.device, non_blocking=True), scale_1, torch.ones_like(scale_1))
