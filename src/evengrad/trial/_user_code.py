"""The functions of a task, called so that what they raise is one clear error, and what they return is checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evengrad.nouns import BatchError, EvengradError, OptimizerError, Task, TaskError, in_words, made
from evengrad.probe import named_parameters
from evengrad.treat import built

Batch = tuple[Any, Any]


def fresh_model(task: Task) -> tuple[nn.Module, Optimizer]:
    """Build the model and the optimizer of a task from torch's random state as it is.

    Raises:
        TaskError: A factory raised or made something else, or the optimizer cannot step without a closure.
        OptimizerError: The optimizer holds none of the model's parameters.
    """
    model = built(task)
    parameters = named_parameters(model)
    optimizer: Optimizer = made(lambda: task.optimizer(model), "Task.optimizer", Optimizer)
    held = held_by(optimizer)
    if not any(id(parameter) in held for parameter in parameters.values()):
        raise OptimizerError(
            "Task.optimizer",
            came=f"an optimizer with {len(held)} parameters, none of them of the model that it was given",
            wanted="optimizer(model) to use model.parameters()",
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TaskError(
            "Task.optimizer",
            came=f"{type(optimizer).__name__}, whose step needs a closure",
            wanted="an optimizer that steps on the gradients it finds",
            advice="use checkup for this model, or another optimizer for the task",
        )
    return model, optimizer


def held_by(optimizer: Optimizer) -> set[int]:
    """Identify the parameters that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def untrained_metric(task: Task) -> float | None:
    """Measure the metric of a fresh model; None when it is not finite or `validate` cannot say."""
    model, _ = fresh_model(task)
    model.eval()
    with torch.no_grad():
        try:
            value = float(task.validate(model))
        except Exception:  # a trained model may do where a fresh one does not; the trainings will tell
            return None
    return value if abs(value) < float("inf") else None


def batches(task: Task) -> Iterator[Batch]:
    """Repeat the task's training batches without end.

    Raises:
        BatchError: `train()` has no batch, or one that is not a pair, or is used up after one pass.
        TaskError: `train()` raised.
    """
    passes = 0
    while True:
        count = 0
        for batch in _iterated(task):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise BatchError("Task.train()", came=type(batch).__name__, wanted="pairs (input, target)")
            count += 1
            yield batch[0], batch[1]
        if count == 0:
            came = "no batch" if passes == 0 else "batches once and none when it was called again"
            advice = "is the data set empty, or the iterator used up?"
            raise BatchError("Task.train()", came=came, wanted="the same batches at every call", advice=advice)
        passes += 1


def first_batch(task: Task) -> Batch:
    """Take the first training batch of a task.

    Raises:
        BatchError: There is none, or it is not a pair.
    """
    return next(batches(task))


def fingerprint(batch: Batch) -> str:
    """Sum up a batch so that two that differ hardly ever look alike."""
    return repr([float(tensor.detach().double().sum()) for tensor in _tensors(batch)])


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [] if value.is_complex() else [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _iterated(task: Task) -> Iterator[Any]:
    try:
        yield from task.train()
    except EvengradError:
        raise
    except Exception as err:  # user code: anything may come
        raise TaskError("Task.train()", came=in_words(err), wanted="batches") from err
