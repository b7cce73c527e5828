"""What tells one sweep from another, so that a journal is never gone on with for another task."""

from __future__ import annotations

import hashlib

from evengrad.nouns import Task
from evengrad.probe import named_parameters
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import fingerprint, first_batch, fresh_model


def identity_of(task: Task, policies: tuple[str, ...], others: tuple[str, ...], *, seed: int) -> str:
    """Say what a sweep is of, in words, with a fingerprint of what words cannot hold.

    In the fingerprint: names and shapes of the parameters, the optimizer and its numbers, the first batch, and the
    settings of the task. Not in it: how many trainings there are to be, so that a sweep can be made longer.

    Args:
        task: What is tuned.
        policies: Which are swept.
        others: What else is swept.
        seed: Of the sweep.

    Raises:
        TaskError, ModelError, BatchError, OptimizerError: The task cannot be built.
    """
    with seeded(seed):
        model, optimizer = fresh_model(task)
        batch = first_batch(task)
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in named_parameters(model).items()]
    numbers = {key: str(value) for group in optimizer.param_groups for key, value in group.items() if key != "params"}
    rest = (task.clip, task.accumulate, task.autocast, task.loss_scale, task.schedule is None, task.after_step is None)
    told = repr((shapes, type(optimizer).__name__, numbers, fingerprint(batch), rest))
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    extra = f", and {', '.join(others)}" if others else ""
    return f"{task.name}, {task.steps} steps, seed {seed}, {', '.join(policies)}{extra}, fingerprint {digest}"
