"""The first and the last steps as they were seen, turned into readings only when somebody asks."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from evengrad.guard._outcome import Outcome
from evengrad.guard._sampling import Sample
from evengrad.guard._sent import Sent
from evengrad.nouns import Reading, Record, Setup

FIRST_STEPS = 32  # kept for good: how a run began
WINDOW_STEPS = 1000
WINDOW_NUMBERS = 4_000_000  # norms kept at most: 16 MB
WINDOW_SAMPLED = 500_000  # numbers of sampled steps kept at most, 4 MB before they become readings


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One step before it becomes a reading: nothing copied, nothing converted.

    Args:
        step: The optimizer step, from 0.
        loss: The loss where the outcome does not hold it.
        lrs: The learning rate of each group, a number or a tensor.
        outcome: What was decided; None where the guard did not see the gradients.
        found: The loss that was found by itself, and what it was multiplied with; None where none was.
        sample: What was sampled; None where nothing was.
    """

    step: int
    loss: Tensor | float | None
    lrs: tuple[Any, ...]
    outcome: Outcome | None = None
    found: float | Sent | None = None
    sample: Sample | None = None

    def ready(self) -> bool:
        """Whether it can be converted without a wait, as far as it does not hang on the outcome."""
        return (self.sample is None or self.sample.ready()) and (not isinstance(self.found, Sent) or self.found.ready())

    def known_loss(self) -> float | None:
        """Return the loss: what was handed over, or else what was found."""
        if self.loss is not None:
            return _number(self.loss)
        if self.outcome is not None and self.outcome.loss is not None:
            return self.outcome.loss
        if self.outcome is not None and self.outcome.overflow:
            return None  # it may be infinite as scaled only
        if isinstance(self.found, Sent):
            value, scale = self.found.read()
            return value / scale if scale else None  # a scale that has come down to zero
        return self.found

    def reading(self, count: int | None = None) -> Reading:
        """Convert; with the norms of the first `count` parameters."""
        lrs = tuple(_number(lr) for lr in self.lrs)
        loss = self.known_loss()
        if self.outcome is None:
            return Reading(step=self.step, loss=loss, lrs=lrs)
        if self.outcome.overflow:  # norms of scaled gradients say nothing about the run
            return Reading(step=self.step, loss=loss, lrs=lrs, skipped=True)
        reading = Reading(
            step=self.step,
            loss=loss,
            lrs=lrs,
            grad_norms=tuple(self.outcome.norms_P[:count].tolist()),
            total_norm=self.outcome.total,
            scale=self.outcome.scale,
            skipped=self.outcome.skipped,
        )
        return reading if self.sample is None else self.sample.added_to(reading, count)


@final
class History:
    """The first steps and a window over the last ones, with a gap between them, bounded in steps and in memory.

    Of what was sampled that of the first steps is kept for good, up to half of the memory, then the last.
    """

    def __init__(self, count: int) -> None:
        self._first: list[Row] = []
        self._rows: deque[Row] = deque(maxlen=max(16, min(WINDOW_STEPS, WINDOW_NUMBERS // count)))
        self._sampled: deque[Sample] = deque()
        self._numbers = self._numbers_of_first = 0

    def append(self, row: Row) -> None:
        """Keep a step, and forget the oldest that is not one of the first."""
        begins = len(self._first) < FIRST_STEPS
        (self._first if begins else self._rows).append(row)
        if row.sample is None:
            return
        if begins and self._numbers_of_first + len(row.sample) <= WINDOW_SAMPLED // 2:
            self._numbers_of_first += len(row.sample)
            return
        self._sampled.append(row.sample)
        self._numbers += len(row.sample)
        while self._sampled and self._numbers + self._numbers_of_first > WINDOW_SAMPLED:
            oldest = self._sampled.popleft()
            self._numbers -= len(oldest)
            oldest.forget()

    def record(self, names: Sequence[str], dtype: str, setup: Setup | None = None) -> Record:
        """Convert what is kept; steps from before a parameter was added lack it and are padded with 0."""
        readings = (row.reading() for row in (*self._first, *self._rows))
        return Record(
            readings=tuple(_padded(reading, len(names)) for reading in readings),
            parameters=tuple(names),
            dtype=dtype,
            source="guard",
            setup=setup,
        )


def _padded(reading: Reading, count: int) -> Reading:
    missing = count - len(reading.grad_norms)
    if not reading.grad_norms or not missing:
        return reading
    return replace(reading, grad_norms=reading.grad_norms + (0.0,) * missing)


def _number(value: Tensor | float) -> float:
    return float(value.detach().to("cpu", torch.float64).numpy().reshape(())) if isinstance(value, Tensor) else value
