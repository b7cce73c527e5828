"""A checkup of a task: its model under a seed, its first batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from evengrad.checkup import Checkup, Progress, checkup
from evengrad.cli._load import named_task
from evengrad.trial import WhereMade, first_batch, on_batch, with_lines


def checkup_of(target: str, *, seed: int, counterfactuals: bool, progress: Progress) -> Checkup:
    """Load a task, build its model and optimizer under the seed, and examine it on its first training batch.

    Raises:
        TaskError: The task cannot be found or built, or does not fit its batch.
        BatchError, ModelError, LossError, OptimizerError: As for `checkup`.
    """
    task = named_task(target)
    torch.manual_seed(seed)
    made = WhereMade()
    model, optimizer = made.fresh_model(task)
    batch = first_batch(task)
    look = partial(checkup, counterfactuals=counterfactuals, seed=seed, progress=progress)
    found = on_batch(task, 1, batch, lambda: look(model, task.loss, batch, optimizer))
    return replace(found, findings=with_lines(found.findings, found.record, made))
