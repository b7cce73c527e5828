"""What a treatment changes in a task, part by part, and what of the user's is beneath it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import FunctionType, MethodType
from typing import Any

from evengrad.nouns import Task
from evengrad.treat import AbstractTreatment, RemoveOutputActivation, SwapActivation, Treated
from evengrad.trial._patch_source import NoPatchError

LITERALS = ("clip", "accumulate", "autocast", "loss_scale")
OURS = "evengrad.treat."


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One treatment of those that were combined: the task before and after it, what differs, and the snippet.

    Args:
        to: The activation that was swapped in, in torch's functional spelling; empty for other treatments.
        output: The treatment, where it changes an activation on the output.
    """

    before: Task
    after: Task
    fields: tuple[str, ...]
    code: str
    to: str = ""
    output: RemoveOutputActivation | None = None


def parts_of(task: Task, treatment: AbstractTreatment, treated: Treated[Task]) -> list[Part]:
    """Apply the parts of a treatment one after the other, to have the code of each by itself.

    Raises:
        NoPatchError: A part changes something that cannot be written into a task.
    """
    before = replace(task, model=beneath(task.model))
    wanted = [*_earlier(task.model), *_flat(treatment)]
    parts = []
    for one in wanted:
        done = treated if len(wanted) == 1 else one.treat_task(before)
        changed = changed_fields(before, done.subject)
        if not changed or set(changed) - {"model", "optimizer", "after_step", "schedule", "loss", *LITERALS}:
            raise NoPatchError(f"{one.label} changes {', '.join(changed) or 'nothing'}, which a patch cannot write")
        to = one.to if isinstance(one, SwapActivation) else ""
        chosen = getattr(done.subject.model, "treatment", None)
        output = chosen if isinstance(chosen, RemoveOutputActivation) else None
        parts.append(Part(before=before, after=done.subject, fields=changed, code=done.code, to=to, output=output))
        before = done.subject
    return parts


def changed_fields(before: Task, after: Task) -> tuple[str, ...]:
    """Name the members of a task that are others now."""
    pairs = ((field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(Task))
    return tuple(name for name, one, other in pairs if one is not other and (callable(one) or one != other))


def beneath(factory: Any) -> Any:
    """Take the wrappers of our treatments off a factory."""
    while type(factory).__module__.startswith(OURS) and hasattr(factory, "factory"):
        factory = factory.factory
    return factory


def innermost(factory: Any) -> Any:
    """Find the function or class that is behind partials, bound methods and decorators."""
    while True:
        if isinstance(factory, functools.partial):
            factory = factory.func
        elif isinstance(factory, MethodType):
            factory = factory.__func__
        elif isinstance(factory, FunctionType) and hasattr(factory, "__wrapped__"):
            factory = inspect.unwrap(factory)
        else:
            return beneath(factory)


def functions_of(task: Task) -> Iterator[Any]:
    """List the functions and classes of the user's that a task is made of."""
    for field in fields(Task):
        value = getattr(task, field.name)
        if callable(value):
            found = innermost(beneath(value))
            if isinstance(found, FunctionType | type):
                yield found


def _earlier(factory: Any) -> list[AbstractTreatment]:
    """List the treatments that a task's model has had before."""
    had: list[AbstractTreatment] = []
    while type(factory).__module__.startswith(OURS) and hasattr(factory, "factory"):
        treatment = getattr(factory, "treatment", None)
        if not isinstance(treatment, AbstractTreatment):
            raise NoPatchError("the model of the task is made by something that was treated before")
        had[:0] = _flat(treatment)
        factory = factory.factory
    return had


def _flat(treatment: AbstractTreatment) -> list[AbstractTreatment]:
    inner: tuple[AbstractTreatment, ...] = getattr(treatment, "treatments", ())
    return [part for one in inner for part in _flat(one)] if inner else [treatment]
