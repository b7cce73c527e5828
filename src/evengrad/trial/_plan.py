"""Which training to run, how far, and at which steps it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evengrad.nouns import Task

Tick = Callable[[int], None]
"""Called with the number of optimizer steps that have been done since the last call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which training to run, and how far.

    Args:
        task: The task, treated or not.
        label: What the trial is called.
        seed: Seed of weights and loop.
        steps: Optimizer steps of the whole training: schedules and sampled steps go by it.
        stage: As in `Trial`.
        until: Where to stop for now; None for the end. The metric is measured there, and a later plan for the same
            training may go on from there.
        log: A run directory for the readings; None for none.
        keep_state: Whether the state of the trained model is wanted.
        time_s: Seconds that the way to `until` may take, where an engine can end a training; None for any time.
    """

    task: Task
    label: str
    seed: int
    steps: int
    stage: str
    until: int | None = None
    log: Path | None = None
    time_s: float | None = None
    keep_state: bool = True

    @property
    def end(self) -> int:
        """The step at which this plan stops."""
        return self.steps if self.until is None else min(self.until, self.steps)

    @property
    def training(self) -> tuple[str, int, int]:
        """What tells one training from another: plans that share it are parts of the same one."""
        return self.label, self.seed, self.steps


def sampled_steps(steps: int) -> frozenset[int]:
    """Choose the steps at which layers are read: powers of two at the start, then sixteen evenly spaced.

    Example:
        >>> sorted(sampled_steps(64))[:8]
        [0, 1, 2, 4, 8, 12, 16, 20]
    """
    early = {0, *(2**power for power in range(8))}
    even = {round(part * steps / 16) for part in range(16)}
    return frozenset(step for step in early | even if step < steps)
