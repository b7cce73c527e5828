"""What a task raises on a batch, told with the task and the batch: model and input, loss and target may not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from evengrad.nouns import BatchError, EvengradError, LossError, ModelError, Task, TaskError
from evengrad.trial._user_code import Batch

T = TypeVar("T")
MOST_PARTS = 4  # of an input that is a tuple or a mapping


def on_batch(task: Task, number: int, batch: Batch, work: Callable[[], T]) -> T:
    """Do something with a batch; what is raised then names the task and the batch.

    Args:
        task: Whose batch it is.
        number: Of the batch, from 1 on, over all passes of `train()`.
        batch: Input and target.
        work: What is done.

    Raises:
        TaskError: Code of the user's own raised, or torch did in it.
        BatchError, LossError, ModelError: As `work` raised it where the batch, or what came out, is wrong by itself.
    """
    try:
        return work()
    except (BatchError, LossError, ModelError) as err:
        raised = isinstance(err.__cause__, Exception) and not isinstance(err, BatchError)
        kind: type[EvengradError] = TaskError if raised else type(err)
        where = f"{batch_named(task, number, batch)}, {err.what}"
        raise kind(where, came=err.came, wanted=err.wanted, advice=err.advice) from (err.__cause__ or err)


def batch_named(task: Task, number: int, batch: Batch) -> str:
    """Name a batch of a task: its number, and what is in it."""
    return f"{task.name}, batch {number} (input {in_shape(batch[0])}, target {in_shape(batch[1])})"


def in_shape(value: Any) -> str:
    """Say what tensors there are in a value, each by dtype and shape; of anything else the type.

    Example:
        >>> import torch
        >>> in_shape({"ids": torch.zeros(2, 3, dtype=torch.int64), "scale": 1.0})
        '{ids: int64 (2, 3), scale: float}'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + _listed([f"{key}: {in_shape(one)}" for key, one in value.items()]) + "}"
    if isinstance(value, tuple | list):
        return "(" + _listed([in_shape(one) for one in value]) + ")"
    return type(value).__name__


def _listed(parts: list[str]) -> str:
    left = len(parts) - MOST_PARTS
    return ", ".join([*parts[:MOST_PARTS], *([f"{left} more"] if left > 0 else [])])
