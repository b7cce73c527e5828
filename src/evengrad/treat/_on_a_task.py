"""Treating a task: its model factory is replaced by one that treats what it builds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn

from evengrad.nouns import Task, TreatmentError, called, in_words, made
from evengrad.treat._abstract import AbstractTreatment, Treated
from evengrad.treat._random_state import random_state_kept


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TreatedModel:
    """Build a model and treat it; can be pickled if the factory can.

    The treatment draws from the seed that torch was given (`torch.initial_seed()`), from a generator of its own.
    """

    factory: Callable[[], nn.Module]
    treatment: AbstractTreatment
    train: Callable[[], Iterable[Any]] | None

    def __call__(self) -> nn.Module:
        model = self.factory()
        with random_state_kept():
            return self.treated(model, seed=torch.initial_seed()).subject

    def treated(self, model: nn.Module, *, seed: int) -> Treated[nn.Module]:
        """Treat a model, with the first training batch to see the order of its forward pass."""
        return self.treatment.treat(model, seed=seed, batch_input=first_input(self.train))


def task_with_treated_model(treatment: AbstractTreatment, task: Task, seed: int) -> Treated[Task]:
    """Replace the model factory of a task, and build one model to say what changes.

    Raises:
        TreatmentError: The treatment does not apply, or the optimizer factory does not take the changed model.
        TaskError: The task cannot be built.
    """
    own_loop = getattr(task, "backward", None) is not None  # then nobody but that function knows what a batch holds
    factory = TreatedModel(factory=task.model, treatment=treatment, train=None if own_loop else task.train)
    with random_state_kept():
        torch.manual_seed(seed)
        treated = factory.treated(built(task), seed=seed)
        return task_with_model(treatment.label, task, factory, treated)


def task_with_model(
    label: str, task: Task, factory: Callable[[], nn.Module], treated: Treated[nn.Module]
) -> Treated[Task]:
    """Replace the model factory of a task, of whose models a treated one is at hand.

    Raises:
        TreatmentError: The optimizer factory does not take the treated model.
    """
    with random_state_kept():
        try:
            task.optimizer(treated.subject)
        except Exception as err:  # user code: it may ask for a layer that is wrapped now
            raise TreatmentError(
                label,
                came=in_words(err, when="from Task.optimizer on the changed model"),
                wanted="an optimizer that takes the parameters of whatever model it is given",
            ) from err
    return Treated(subject=replace(task, model=factory), changes=treated.changes, code=treated.code)


def built(task: Task) -> nn.Module:
    """Build the model of a task from torch's random state as it is.

    Raises:
        TaskError: The factory raised, or made something else.
    """
    model: nn.Module = made(task.model, "Task.model", nn.Module)
    return model


def first_input(train: Callable[[], Iterable[Any]] | None) -> Any:
    """Take the input of the first training batch; None when there is no batch or it is not a pair."""
    batch = None if train is None else first_pair(train)
    return None if batch is None else batch[0]


def first_pair(train: Callable[[], Iterable[Any]]) -> tuple[Any, Any] | None:
    """Take input and target of the first training batch; None when there is no batch or it is not a pair.

    Raises:
        TaskError: `train()` raised.
    """
    batches = called("Task.train()", lambda: iter(train()), wanted="batches")
    batch = called("Task.train()", lambda: next(batches, None), wanted="batches")
    if close := getattr(batches, "close", None):
        close()
    return (batch[0], batch[1]) if isinstance(batch, tuple | list) and len(batch) == 2 else None
