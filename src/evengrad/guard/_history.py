"""The last steps as they were seen, turned into readings only when somebody asks."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from evengrad.guard._outcome import Outcome
from evengrad.nouns import LayerReading, Reading, Record

WINDOW_STEPS = 1000
WINDOW_NUMBERS = 4_000_000  # norms kept at most: 16 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One step before it becomes a reading: nothing copied, nothing converted.

    Args:
        step: The optimizer step, from 0.
        loss: The loss where the outcome does not hold it.
        lrs: The learning rate of each group, a number or a tensor.
        outcome: What was decided; None where the guard did not see the gradients.
        layers: Makes the readings of the layers, once; None where they were not sampled.
    """

    step: int
    loss: Tensor | float | None
    lrs: tuple[Any, ...]
    outcome: Outcome | None = None
    layers: Callable[[], tuple[LayerReading, ...]] | None = None

    def reading(self, count: int | None = None) -> Reading:
        """Convert; with the norms of the first `count` parameters."""
        lrs = tuple(_number(lr) for lr in self.lrs)
        loss = None if self.loss is None else _number(self.loss)
        if self.outcome is None:
            return Reading(step=self.step, loss=loss, lrs=lrs)
        if loss is None:
            loss = self.outcome.loss
        if self.outcome.overflow:  # norms of scaled gradients say nothing about the run
            return Reading(step=self.step, loss=loss, lrs=lrs, skipped=True)
        return Reading(
            step=self.step,
            loss=loss,
            lrs=lrs,
            grad_norms=tuple(self.outcome.norms_P[:count].tolist()),
            total_norm=self.outcome.total,
            scale=self.outcome.scale,
            skipped=self.outcome.skipped,
            layers=() if self.layers is None else self.layers(),
        )


@final
class History:
    """A window over the last steps, bounded in steps and in memory."""

    def __init__(self, count: int) -> None:
        self._rows: deque[Row] = deque(maxlen=max(16, min(WINDOW_STEPS, WINDOW_NUMBERS // count)))

    def append(self, row: Row) -> None:
        """Keep a step and forget the oldest."""
        self._rows.append(row)

    def record(self, names: Sequence[str], dtype: str) -> Record:
        """Convert the window; steps from before a parameter was added lack it and are padded with 0."""
        readings = (row.reading() for row in self._rows)
        return Record(
            readings=tuple(_padded(reading, len(names)) for reading in readings),
            parameters=tuple(names),
            dtype=dtype,
            source="guard",
        )


def _padded(reading: Reading, count: int) -> Reading:
    missing = count - len(reading.grad_norms)
    if not reading.grad_norms or not missing:
        return reading
    parts = {name: getattr(reading, name) for name in Reading.__dataclass_fields__}
    return Reading(**{**parts, "grad_norms": reading.grad_norms + (0.0,) * missing})


def _number(value: Tensor | float) -> float:
    return float(value.detach().to("cpu", torch.float64).numpy().reshape(())) if isinstance(value, Tensor) else value
