"""A checkup of a task: its model under a seed, its first batch."""

from __future__ import annotations

import torch

from evengrad.checkup import Checkup, Progress, checkup
from evengrad.cli._load import load_task
from evengrad.trial import first_batch, fresh_model


def checkup_of(target: str, *, seed: int, counterfactuals: bool, progress: Progress) -> Checkup:
    """Load a task, build its model and optimizer under the seed, and examine it on its first training batch.

    Raises:
        TaskError: The task cannot be found or built.
        BatchError, ModelError, LossError, OptimizerError: As for `checkup`.
    """
    task = load_task(target)
    torch.manual_seed(seed)
    model, optimizer = fresh_model(task)
    return checkup(
        model,
        task.loss,
        first_batch(task),
        optimizer,
        counterfactuals=counterfactuals,
        seed=seed,
        progress=progress,
    )
