"""The optimizer that a task makes, built once to describe a change."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import Task, made
from evengrad.treat._on_a_task import built
from evengrad.treat._random_state import random_state_kept


def optimizer_of(task: Task, factory: Callable[[nn.Module], Optimizer], seed: int) -> Optimizer:
    """Build the task's model from the seed, and an optimizer for it.

    Raises:
        TaskError: One of the factories raised, or made something else.
    """
    with random_state_kept():
        torch.manual_seed(seed)
        model = built(task)
        optimizer: Optimizer = made(lambda: factory(model), "Task.optimizer", Optimizer)
    return optimizer


def lrs_of(optimizer: Optimizer) -> str:
    """List the different learning rates of an optimizer.

    Example:
        >>> lrs_of(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        '0.1'
    """
    return ", ".join(dict.fromkeys(f"{float(group['lr']):.4g}" for group in optimizer.param_groups))
