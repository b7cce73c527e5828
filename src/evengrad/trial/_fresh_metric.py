"""What a fresh model reaches before any step: the floor under what a training has learnt."""

from __future__ import annotations

from evengrad.nouns import EvengradError, Task
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import untrained_metric


def fresh_metric(task: Task, seed: int) -> float | None:
    """Measure a fresh model; None where it cannot be built or measured: its training will have said why."""
    try:
        with seeded(seed):
            return untrained_metric(task)
    except EvengradError:
        return None
