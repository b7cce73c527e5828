"""From `path/to/file.py:name` or `package.module:name` to a task."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from evengrad.nouns import EvengradError, Task, TaskError, in_words


def load_task(target: str) -> Task:
    """Load a task that a user named.

    The name may be a `Task` or a function without arguments that returns one. The file's own folder (for a module: the
    working directory) comes first on the import path, so that it finds its neighbours.

    Raises:
        TaskError: The file, the module or the name does not exist, or what is there is no task, or it raised.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise TaskError(
            "task", came=repr(target), wanted="FILE:NAME or MODULE:NAME", advice="for example train.py:task"
        )
    module = _file(where, target) if where.endswith(".py") or "/" in where or "\\" in where else _module(where, target)
    if not hasattr(module, name):
        known = ", ".join(_offers(module)) or "no task"
        raise TaskError(f"name {name!r} in {where}", came="nothing of that name", wanted=f"one of its names: {known}")
    return _task(getattr(module, name), target)


def named_task(target: str) -> Task:
    """Load a task and call it as the user did, unless it has a name of its own.

    Raises:
        TaskError: As for `load_task`.
    """
    task = load_task(target)
    return replace(task, name=target) if task.name == "task" else task


def _file(where: str, target: str) -> ModuleType:
    path = Path(where)
    if not path.is_file():
        came = "a folder" if path.is_dir() else "no such file"
        raise TaskError(f"file {where}", came=came, wanted="a Python file that defines a task")
    name = f"_evengrad_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"file {where}", came=f"a {path.suffix or 'nameless'} file", wanted="a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    _guarded(lambda: spec.loader.exec_module(module), target)
    return module


def _module(where: str, target: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise TaskError(f"module {where}", came="no such module", wanted="a module that can be imported from here")
    module: ModuleType = _guarded(lambda: importlib.import_module(where), target)
    return module


def _task(found: Any, target: str) -> Task:
    if isinstance(found, Task):
        return found
    if not callable(found):
        raise TaskError(target, came=type(found).__name__, wanted="an evengrad.Task or a function that returns one")
    made = _guarded(found, target)
    if not isinstance(made, Task):
        raise TaskError(target, came=f"a function that returned {type(made).__name__}", wanted="an evengrad.Task")
    return made


def _guarded(action: Any, target: str) -> Any:
    """Run code of the user; what it raises becomes one line that names the place."""
    try:
        return action()
    except EvengradError:
        raise
    except (Exception, SystemExit) as err:
        raise TaskError(target, came=in_words(err), wanted="code that runs through") from err


def _offers(module: ModuleType) -> list[str]:
    """Names that could be meant: tasks first, then functions defined in the module itself."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    tasks = [name for name, value in names.items() if isinstance(value, Task)]
    functions = [
        name
        for name, value in names.items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not isinstance(value, type)
    ]
    return sorted(tasks) + sorted(functions)
