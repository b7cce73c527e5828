"""Where a decision is made and how it is applied: the seam between the guard and the device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from evengrad.clip import AbstractPolicy, Array, State
from evengrad.measure import scale_


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured before a step.

    Args:
        squared: Squared norms of the gradients as they are, float32, shape (P,), on the device.
        grad_scale: What the gradients were multiplied with; None when nothing.
        found_inf: Not zero when a GradScaler has found a gradient that is not finite; None without one.
    """

    squared: Tensor
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was decided for a step.

    Args:
        norms_P: Unscaled gradient norms before clipping.
        total: Their norm together.
        scale: The factor for the gradients.
        skipped: Whether the step is left out.
        state: The policy's state for the next step.
        overflow: Whether it is left out by a GradScaler, on gradients that are not finite as scaled: how a scaler finds
            its scale, and no sign of a fault.
    """

    norms_P: Array
    total: float
    scale: float
    skipped: bool
    state: State
    overflow: bool = False


class AbstractApply(ABC):
    """Decide for what was measured, and apply the decision to the gradients."""

    __slots__ = ()

    cost: str
    """What it costs per step, for the guard's repr."""

    @abstractmethod
    def decide(self, measured: Measured, policy: AbstractPolicy, state: State) -> Outcome:
        """Let the policy decide; a skip leaves its state as it was."""

    @abstractmethod
    def scale(self, outcome: Outcome, parameters: Sequence[Tensor]) -> None:
        """Clip the gradients in place where the outcome says so."""

    @abstractmethod
    def hold(self, parameters: Sequence[Tensor]) -> None:
        """Take the gradients away, so that the optimizer's step does nothing."""

    @abstractmethod
    def release(self) -> None:
        """Give back the gradients that were taken away, except where there are new ones."""


@final
class OnHost(AbstractApply):
    """Decide on the host, in NumPy.

    Free on a CPU, where the norms are host memory already. On an accelerator it copies P numbers and so waits for the
    device once per step, as a GradScaler does. Nothing is written when nothing is clipped. A step is skipped by giving
    the optimizer no gradients: it touches neither weights nor moments nor counters, whatever optimizer it is.
    """

    __slots__ = ("_held",)

    cost = "on the host: free on a CPU, waits once per step for an accelerator"

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []

    def decide(self, measured: Measured, policy: AbstractPolicy, state: State) -> Outcome:
        """Let the policy decide; a skip leaves its state as it was."""
        norms_P, found_inf = _on_host(measured)
        decision = policy(norms_P, state)
        total = float(decision.norm[0])
        if found_inf or bool(decision.skip[0]):
            return Outcome(norms_P=norms_P, total=total, scale=1.0, skipped=True, state=state, overflow=found_inf)
        scale = float(decision.scale[0])
        return Outcome(norms_P=norms_P, total=total, scale=scale, skipped=False, state=decision.state)

    def scale(self, outcome: Outcome, parameters: Sequence[Tensor]) -> None:
        """Clip the gradients in place where the outcome says so."""
        if not outcome.skipped and outcome.scale != 1.0:
            scale_((parameter.grad for parameter in parameters), outcome.scale)

    def hold(self, parameters: Sequence[Tensor]) -> None:
        """Take the gradients away, so that the optimizer's step does nothing."""
        self.release()
        for parameter in parameters:
            if parameter.grad is not None:
                self._held.append((parameter, parameter.grad))
                parameter.grad = None

    def release(self) -> None:
        """Give back the gradients that were taken away, all or none: a new one means a new backward has come since."""
        held, self._held = self._held, []
        if all(parameter.grad is None for parameter, _ in held):
            for parameter, grad in held:
                parameter.grad = grad


def overflowed(found_inf: Tensor | None) -> bool:
    """Read what a GradScaler has found; waits for an accelerator, so only to be asked where a step is skipped."""
    return found_inf is not None and bool(found_inf.detach().cpu().numpy() != 0)


def _on_host(measured: Measured) -> tuple[Array, bool]:
    """Read all that was measured: on a CPU its own memory, on an accelerator by one copy, which waits for it."""
    squared = measured.squared
    count = len(squared)
    extras = [extra for extra in (measured.grad_scale, measured.found_inf) if extra is not None]
    if extras:
        squared = torch.cat([squared, *(extra.detach().reshape(1).to(squared) for extra in extras)])
    numbers = squared.cpu().numpy()
    norms_P = np.sqrt(numbers[:count])
    if measured.grad_scale is not None:
        norms_P = norms_P / numbers[count]
    return norms_P, measured.found_inf is not None and bool(numbers[-1] != 0)
