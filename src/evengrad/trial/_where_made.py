"""On which of the user's lines the parts of a task are made: noted while they are built."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from evengrad.nouns import Task, installed_folders
from evengrad.trial._user_code import fresh_model

OURS = f"{Path(__file__).parents[1]}/"
MAKING = frozenset({"__init__", "__post_init__"})

Made = dict[int, tuple["weakref.ref[Any]", str]]
"""Of each object, by its identity: itself, unless it is gone and another has its identity, and its line."""


@final
class WhereMade:
    """Builds the model and the optimizer of a task, and notes the lines of the user's own that make them.

    It is there for the training that builds them anyhow: nothing is built for the sake of the lines.

    Attributes:
        model: As it was built; None before.
        layers: The line of each layer, by its name, where it is known.
        optimizer: The line of the optimizer; empty where it is not known.
        loss: The line where the loss is defined; empty where it is not the user's own.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.layers: dict[str, str] = {}
        self.optimizer = ""
        self.loss = ""

    def fresh_model(self, task: Task) -> tuple[nn.Module, Optimizer]:
        """Build both as `fresh_model` does, from the random state as it is.

        Raises:
            TaskError, OptimizerError: As `fresh_model`.

        Cost: every call of a Python function in the factories is looked at; nothing of what they make is kept alive.
        """
        with _noted() as made:
            model, optimizer = fresh_model(task)
        lines = {name: _line_of(module, made) for name, module in model.named_modules() if _is_layer(module)}
        self.layers = {name: line for name, line in lines.items() if line}
        self.optimizer, self.loss = _line_of(optimizer, made), _defined(task.loss)
        self.model = model
        return model, optimizer


def users_own(code: object) -> CodeType | None:
    """Give code that is in a file of the user's own; None for any other."""
    if not isinstance(code, CodeType) or code.co_filename.startswith(("<", OURS, *installed_folders())):
        return None
    return code


def forward_of(module: nn.Module) -> CodeType | None:
    """Give the code of a forward that is the user's own; None for any other."""
    return users_own(getattr(inspect.unwrap(type(module).forward), "__code__", None))


def said(code: CodeType, line: int) -> str:
    """Name a line of code: its file, number and function."""
    path = Path(code.co_filename).absolute()
    try:
        shown = path.relative_to(Path.cwd())
    except (OSError, ValueError):  # no working directory any more, or a file that is elsewhere
        shown = Path(*path.parts[-2:])
    name = code.co_qualname.split("<locals>.")[-1]
    return f"{shown.as_posix()}:{line}" + ("" if name.startswith("<") else f" in {name}")


@contextmanager
def _noted() -> Iterator[Made]:
    """Note on which of the user's lines modules and optimizers are made; nothing where a profiler is at work.

    A profiler that the user's code sets meanwhile stays, and nothing more is noted.
    """
    made: Made = {}
    over: list[bool] = []
    starts = {nn.Module.__init__.__code__, Optimizer.__init__.__code__}
    theirs = ("<", OURS, *installed_folders())

    def note(frame: FrameType, event: str, _: Any) -> None:
        if over:
            _take_away(note)  # somebody has put it back
        elif event == "call" and frame.f_code in starts:
            one = frame.f_locals.get("self")
            with suppress(TypeError):  # of a class that has no room for a reference
                made[id(one)] = (weakref.ref(one), _made_by(frame, one, theirs))

    if sys.getprofile() is not None:
        yield made
        return
    sys.setprofile(note)
    try:
        yield made
    finally:
        over.append(True)
        _take_away(note)


def _take_away(note: Callable[[FrameType, str, Any], None]) -> None:
    if sys.getprofile() is note:
        sys.setprofile(None)


def _made_by(start: FrameType, one: Any, theirs: tuple[str, ...]) -> str:
    """Find the innermost call of the user's own that is not a part of the object's own constructor."""
    frame: FrameType | None = start
    while frame is not None and (frame.f_code.co_filename.startswith(theirs) or _makes(frame, one)):
        frame = frame.f_back  # what wraps a constructor, as some libraries do, stands between its calls
    return "" if frame is None else said(frame.f_code, frame.f_lineno)


def _makes(frame: FrameType, one: Any) -> bool:
    """Tell whether a call is one of an object's own constructor."""
    names = frame.f_code.co_varnames[:1]
    return frame.f_code.co_name in MAKING and bool(names) and frame.f_locals.get(names[0]) is one


def _line_of(one: object, made: Made) -> str:
    noted, line = made.get(id(one), (None, ""))
    return line if noted is not None and noted() is one else ""


def _is_layer(module: nn.Module) -> bool:
    """Tell whether a class is or extends one of torch's, or has no forward of the user's own to tell more."""
    kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    return forward_of(module) is None or any(kind.__module__.startswith("torch.") for kind in kinds)


def _defined(function: Callable[..., Any]) -> str:
    """Say where a function of the user's own begins."""
    plain = function.forward if isinstance(function, nn.Module) else inspect.unwrap(function)
    code = users_own(getattr(plain, "__code__", None))
    return "" if code is None else said(code, code.co_firstlineno)
