"""The metric of a task, by a plain training from a seed."""

from __future__ import annotations

from evengrad.nouns import EvengradError, Task
from evengrad.trial._plan import Plan
from evengrad.trial._training import run_course


def metric_of(task: Task, seed: int) -> float | None:
    """Train a task once in this process, as a trial would, and return its metric; None where the training failed.

    Args:
        task: Treated or not.
        seed: Of weights and loop.
    """
    try:
        plan = Plan(task=task, label="", seed=seed, steps=task.steps, stage="scout")
        return run_course(plan, lambda count: None).trial.metric
    except EvengradError:
        return None
