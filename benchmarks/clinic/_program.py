"""What the clinic is made of: faulty programs with their fix, loops, healthy trainings, healthy architectures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evengrad import Task

MakeGuard = Callable[[nn.Module, Any], Any]
"""Makes what watches a loop, from its model and its optimizer (or several)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A training with a fault, and the same one without it.

    Args:
        number: The clinic's number; those from 101 are not among the forty.
        name: What it is, in few words.
        origin: Where the fault was seen.
        faulty: The training with the fault.
        fixed: A training of the same data that works.
        families: The answers that are right for the fault that is at the root.
        place: What a finding has to point to: patterns (fnmatch) of names of modules, any of which is right; or
            "optimizer", "loss", "data".
        note: What differs from the published program or its published fix.
        reaches: The metric that the fixed training should reach.
    """

    number: int
    name: str
    origin: str
    faulty: Task
    fixed: Task
    families: tuple[str, ...]
    place: tuple[str, ...]
    note: str = ""
    reaches: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Healthy:
    """A training that is fine: nothing is to be found.

    Args:
        name: What it is.
        task: The training.
        reaches: The metric that it should reach.
    """

    name: str
    task: Task
    reaches: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """A training loop of its own, whose fault no task can have, or which has none.

    Args:
        number: The clinic's number, from 201.
        name: What it is.
        families: The answers that are right; empty for a loop without a fault.
        place: As in `Program`.
        run: Draws from torch's global random state, builds model and optimizer, calls what it is given with both,
            hands over every loss before backward, trains, and returns what watched.
    """

    number: int
    name: str
    families: tuple[str, ...]
    place: tuple[str, ...]
    run: Callable[[MakeGuard], Any]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to find."""
        return not self.families


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A network as it is published, before its training: nothing is to be found.

    Args:
        name: What it is called.
        build: From a generator, which draws the batch and seeds the weights, to (model, loss, (input, target)).
    """

    name: str
    build: Callable[[torch.Generator], tuple[nn.Module, Callable[..., torch.Tensor], tuple[Any, Any]]]


MakeOptimizer = Callable[[nn.Module], Optimizer]
