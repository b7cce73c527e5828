"""The line of the user's code that a finding is about: seen while model and optimizer are built once more."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import EvengradError, Finding, Record, Task, installed_folders
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import fresh_model

# What is wrong with the settings of the optimizer; and with weights that it does not hold, if torch sees them.
OF_THE_OPTIMIZER = frozenset({"EG601", "EG602", "EG604", "EG605", "EG606"})
LEFT_OUT = "EG109"
OF_THE_LOSS = frozenset({"EG203", "EG507"})
# Of an activation behind the last layer.
OF_THE_OUTPUT = frozenset({"EG501", "EG502", "EG503", "EG505", "EG506"})
ACTIVATIONS = ("softmax", "sigmoid", "relu", "tanh", "softplus")
# Of what one layer is or how it is drawn. Others are about what forward does between layers, about data or a loop.
OF_A_LAYER = frozenset(
    {"EG101", "EG102", "EG103", "EG104", "EG105", "EG301", "EG302", "EG303", "EG304", "EG401", "EG402", "EG403"}
    | {"EG608"}
)
OURS = f"{Path(__file__).parents[1]}/"


def with_lines(findings: tuple[Finding, ...], record: Record, task: Task, *, seed: int) -> tuple[Finding, ...]:
    """Point each finding to the most exact line that is known for sure; where none is, it stays as it is.

    A layer is made where its constructor was called, an activation that forward calls as a function stands on the only
    line that calls one of its name, and a loss where it is defined.

    Cost: one model and one optimizer, built while every call of a Python function is looked at; nothing without a
        finding.
    """
    if not findings:
        return findings
    try:
        with seeded(seed), _watched() as made:
            model, optimizer = fresh_model(task)
    except EvengradError:  # its training has said why
        return findings
    lines = {
        name: made[id(module)] for name, module in model.named_modules() if _is_plain(module) and id(module) in made
    }
    known = _Known(model=model, layers=lines, optimizer=made.get(id(optimizer), ""), loss=_defined(task.loss))
    unseen = record.setup is not None and bool(record.setup.unregistered)
    return tuple(replace(one, look_at=_line(one, known, unseen=unseen) or one.look_at) for one in findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """Where the parts of a task are made."""

    model: nn.Module
    layers: dict[str, str]
    optimizer: str
    loss: str


def _line(finding: Finding, known: _Known, *, unseen: bool) -> str:
    if finding.code in OF_THE_OPTIMIZER or (finding.code == LEFT_OUT and not unseen):
        return known.optimizer
    if finding.code in OF_THE_LOSS:
        return known.loss
    place = finding.where[0] if finding.where else ""
    if finding.code in OF_A_LAYER:
        return known.layers.get(place, "")
    if finding.code not in OF_THE_OUTPUT:
        return ""
    if place in known.layers and not list(known.model.get_submodule(place).parameters()):
        return known.layers[place]
    return _called_in(known.model, finding.message.lower())


@contextmanager
def _watched() -> Iterator[dict[int, str]]:
    """Note on which of the user's lines modules and optimizers are made; nothing where a profiler is at work."""
    made: dict[int, str] = {}
    alive: list[Any] = []  # so that what is copied later, without a constructor, has the identity of none of them
    starts = {nn.Module.__init__.__code__, Optimizer.__init__.__code__}
    theirs = tuple({*installed_folders(), OURS})

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in starts:
            alive.append(frame.f_locals.get("self"))
            made[id(alive[-1])] = _user_line(frame.f_back, theirs)

    if sys.getprofile() is not None:
        yield made
        return
    sys.setprofile(note)
    try:
        yield made
    finally:
        sys.setprofile(None)


def _user_line(frame: FrameType | None, theirs: tuple[str, ...]) -> str:
    """Find the innermost call that is the user's own."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(("<", *theirs)):
            return _said(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a class is installed: of one of the user's own the forward is known, which says more."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return isinstance(code, CodeType) and code.co_filename.startswith(installed_folders())


def _called_in(model: nn.Module, message: str) -> str:
    """Find the only line of a forward of the user's own that calls an activation of which a message speaks."""
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    if _is_plain(model) or not isinstance(code, CodeType):
        return ""
    names = {name for name in ACTIVATIONS if name in message}
    lines = {
        step.positions.lineno
        for step in dis.get_instructions(code)
        if step.positions is not None and str(step.argval).removeprefix("log_") in names
    }
    line = lines.pop() if len(lines) == 1 else None
    return "" if line is None else _said(code, line)


def _defined(function: Callable[..., Any]) -> str:
    """Say where a function of the user's own begins."""
    plain = function.forward if isinstance(function, nn.Module) else inspect.unwrap(function)
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType) or code.co_filename.startswith(("<", OURS, *installed_folders())):
        return ""
    return _said(code, code.co_firstlineno)


def _said(code: CodeType, line: int) -> str:
    path = Path(code.co_filename).absolute()
    try:
        shown = path.relative_to(Path.cwd())
    except (OSError, ValueError):  # no working directory any more, or a file that is elsewhere
        shown = Path(*path.parts[-2:])
    name = code.co_qualname.split("<locals>.")[-1]
    return f"{shown.as_posix()}:{line}" + ("" if name.startswith("<") else f" in {name}")
