"""What a task raises on a batch, told with the task and the batch: model and input, loss and target may not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from evengrad.nouns import BatchError, EvengradError, LossError, ModelError, Task, TaskError, printable
from evengrad.trial._user_code import Batch

T = TypeVar("T")
MOST_PARTS = 4  # of an input that is a tuple or a mapping
DEEPEST = 3  # levels of such inputs within each other: 64 tensors at the most
LONGEST_KEY = 40  # characters: about what a name in a program has at the most


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

    It tells of what is wrong already, so it is short whatever comes, and never raises: what cannot be told by its parts
    is told by its type.

    Example:
        >>> import torch
        >>> in_shape({"ids": torch.zeros(2, 3, dtype=torch.int64), "scale": 1.0})
        '{ids: int64 (2, 3), scale: float}'
    """
    return _in_shape(value, DEEPEST)


def _in_shape(value: Any, depth: int) -> str:
    try:
        if isinstance(value, Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if depth and isinstance(value, Mapping):
            items = [f"{_key(key)}: {_in_shape(one, depth - 1)}" for key, one in islice(value.items(), MOST_PARTS)]
            return "{" + _listed(items, len(value)) + "}"
        if depth and isinstance(value, tuple | list):
            return "(" + _listed([_in_shape(one, depth - 1) for one in islice(value, MOST_PARTS)], len(value)) + ")"
    except Exception:  # the user's own containers, and tensors that have no one shape
        return _type_name(value)
    return _type_name(value)


def _key(key: Any) -> str:
    try:
        said = str(key)
    except Exception:  # of the user's own: anything may come
        return _type_name(key)
    return printable(said[:LONGEST_KEY]) + ("…" if len(said) > LONGEST_KEY else "")


def _type_name(value: Any) -> str:
    return printable(type(value).__name__[:LONGEST_KEY])


def _listed(parts: list[str], count: int) -> str:
    left = count - MOST_PARTS
    return ", ".join([*parts, *([f"{left} more"] if left > 0 else [])])
