"""Events: what a guard did at a step that it did not let through as it came."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step that was clipped or left out, or a run that was taken back.

    Args:
        kind: `clipped`, `skipped` or `rolled back`.
        step: The optimizer step, from 0.
        norm: The norm of all gradients together before clipping; NaN or infinite when it was.
        scale: The smallest factor that a gradient was multiplied with.
        parameters: Names of the parameters whose gradients were not finite.
        reason: Why, in words; where a value is not finite, the first module where it is, as far as can be told.
    """

    kind: Literal["clipped", "skipped", "rolled back"]
    step: int
    norm: float
    scale: float = 1.0
    parameters: tuple[str, ...] = ()
    reason: str = ""
