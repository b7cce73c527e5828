"""What was measured before a step and what was decided for it."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from evengrad.clip import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What is known of a step beside its gradients.

    Args:
        loss: Its loss; None when nobody handed it over.
        by: What a GradScaler has multiplied the gradients with; None when nothing.
        scale: A GradScaler's scale, where it is known; also when the gradients were divided by it already.
        found_inf: Not zero when a GradScaler has found a gradient that is not finite; None without one.
        scaled: The optimizers, by `id`, whose gradients are multiplied so still, for a guard that only watches; the
            others unscale them all before they decide.
    """

    loss: Tensor | float | None = None
    by: Tensor | None = None
    scale: Tensor | None = None
    found_inf: Tensor | None = None
    scaled: frozenset[int] = frozenset()


def is_search(loss: float | None, scale: float | None) -> bool:
    """Whether a GradScaler that has found an infinite gradient is looking for its scale, and nothing is wrong.

    Not where the loss itself is not finite, and not where nothing is scaled up any more.
    """
    return (loss is None or math.isfinite(loss)) and (scale is None or scale > 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was decided for a step, as numbers on the host.

    Args:
        norms_P: Unscaled Euclidean gradient norms before clipping.
        total: Their norm together.
        norm: The norm together of the kind that the policy bounds.
        scale: The factor for the gradients; the smallest where each has its own.
        skipped: Whether the step is left out.
        overflow: Whether it is left out by a GradScaler, on gradients that are not finite as scaled: how a scaler finds
            its scale, and no sign of a fault.
        loss: The loss that was handed over.
    """

    norms_P: Array
    total: float
    norm: float
    scale: float
    skipped: bool
    overflow: bool = False
    loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """A decision that is in force until its step has gone by.

    Args:
        outcome: The numbers; None while they are on the device only.
        packed: The numbers on the device; None when they are on the host.
        skip: Whether the step is left out, float32, 0-d, on the device; None when the outcome says it.
        by: What the optimizer is to divide the gradients by, float32, 0-d, on the device; None for nothing.
        unscaled: Whether gradients that a GradScaler had scaled were divided by its scale.
    """

    outcome: Outcome | None = None
    packed: "Packed | None" = None
    skip: Tensor | None = None
    by: Tensor | None = None
    unscaled: bool = False

    @property
    def late(self) -> bool:
        """Whether the host learns of it while the loop goes on."""
        return self.packed is not None and self.packed.late

    def ready(self) -> bool:
        """Whether the numbers can be had without a wait."""
        return self.packed is None or self.packed.ready()

    def read(self) -> Outcome:
        """Return the numbers; waits for the device where they are not ready."""
        return self.outcome if self.packed is None else self.packed.outcome()  # type: ignore[return-value]

    def known_skipped(self) -> bool:
        """Whether the host knows that the step is left out."""
        return self.outcome is not None and self.outcome.skipped


EXTRAS = 6  # numbers behind the norms: total, norm, scale, skip, overflow, loss


@final
class Packed:
    """The numbers of a decision on their way from the device to the host, without a wait for them.

    Args:
        numbers: Norms, then the extras, float32, shape (P + 6,).
        has_loss: Whether the last number is a loss.
    """

    __slots__ = ("_event", "_has_loss", "_numbers", "_on_device")

    def __init__(self, numbers: Tensor, *, has_loss: bool) -> None:
        self._has_loss = has_loss
        self._on_device = numbers
        self._event: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._numbers = numbers

    @property
    def late(self) -> bool:
        """Whether they are on their way from another device."""
        return self._event is not None

    def norm(self) -> Tensor:
        """Return the norm that the policy bounds, 0-d, on the device."""
        return self._on_device[1 - EXTRAS]

    def ready(self) -> bool:
        """Whether the copy has arrived."""
        return self._event is None or bool(self._event.query())

    def outcome(self) -> Outcome:
        """Return the numbers; waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        numbers = self._numbers.cpu().numpy()
        total, norm, scale, skip, overflow, loss = numbers[-EXTRAS:].tolist()
        return Outcome(
            norms_P=numbers[:-EXTRAS],
            total=total,
            norm=norm,
            scale=scale,
            skipped=bool(skip),
            overflow=bool(overflow),
            loss=loss if self._has_loss else None,
        )
