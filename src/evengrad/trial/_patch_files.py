"""The user's files that a task comes from, as they are on disk, if they are what was imported."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from evengrad.nouns import Task
from evengrad.trial._patch_parts import functions_of
from evengrad.trial._patch_source import NoPatchError, Source, is_installed, read_source
from evengrad.trial._seeded import seeded

MOST_FILES = 8
MOST_ITEMS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFiles:
    """Files by path.

    Args:
        sources: What they hold.
        namespaces: The names of their modules as they are now.
        refused: Why others could not be read.
    """

    sources: Mapping[Path, Source]
    namespaces: Mapping[Path, Mapping[str, Any]]
    refused: tuple[str, ...]


def files_of(task: Task) -> UserFiles:
    """Read the files of a task's functions, of its model's classes, and of the modules that hold the task.

    A file of which any function is not what was imported is left out: what was tried would not be what it says now.
    """
    sources: dict[Path, Source] = {}
    namespaces: dict[Path, dict[str, Any]] = {}
    refused: dict[Path | str, str] = {}
    for filename, names, live in _places(task):
        try:
            source = read_source(filename)
        except NoPatchError as err:
            refused[filename] = str(err)
            continue
        source = sources.get(source.path, source)
        if other := _not_as_imported(source, names, live):
            refused[source.path] = (
                f"{source.path.name} was changed on disk after it was imported: {other} is another now"
            )
        if len(sources) < MOST_FILES or source.path in sources:
            sources[source.path] = source
            namespaces.setdefault(source.path, names)
    return UserFiles(
        sources={path: source for path, source in sources.items() if path not in refused},
        namespaces=namespaces,
        refused=tuple(dict.fromkeys(refused.values())),
    )


def _places(task: Task) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for one in functions_of(task):
        if isinstance(one, FunctionType):
            yield one.__code__.co_filename, one.__globals__, one
        else:
            yield from _module_of(one)
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        depth = 0 if is_installed(getattr(module, "__file__", None)) else 2
        if any(_holds(value, task, depth) for value in list(vars(module).values())):
            yield getattr(module, "__file__", None) or "<module>", vars(module), None
    with seeded(0):
        model = task.model()
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        yield from _module_of(kind)


def _holds(value: Any, task: Task, depth: int = 2) -> bool:
    """Tell whether a thing is the task, or holds it in a list, a tuple, a mapping or a data class."""
    if value is task or depth == 0:
        return value is task
    kind = type(value)  # not its __class__, as a stand-in for a module may answer with a warning
    if issubclass(kind, dict):
        items = list(value.values())
    elif issubclass(kind, list | tuple):
        items = list(value)
    elif is_dataclass(kind):
        items = [getattr(value, one.name, None) for one in fields(kind)]
    else:
        return False
    return len(items) <= MOST_ITEMS and any(_holds(item, task, depth - 1) for item in items)


def _module_of(kind: type) -> Iterator[tuple[str, dict[str, Any], Any]]:
    module = sys.modules.get(kind.__module__)
    if module is not None and not kind.__module__.startswith(("torch.", "evengrad.")):
        yield getattr(module, "__file__", None) or "<module>", vars(module), kind


def _not_as_imported(source: Source, names: Mapping[str, Any], live: Any) -> str:
    """Name a function of a module that its file does not hold; empty when it holds them all."""
    functions = (one for thing in (live, *list(names.values())) for one in _functions(thing, source.path))
    return next((one.__qualname__ for one in functions if not source.has(one.__code__)), "")


def _functions(thing: Any, path: Path) -> Iterator[FunctionType]:
    """Give a function, or those of a class, if they were compiled from a file."""
    found = vars(thing).values() if isinstance(thing, type) else (thing,)
    for one in found:
        bare = getattr(one, "__func__", None) or getattr(one, "fget", None) or one
        function = inspect.unwrap(bare) if isinstance(bare, FunctionType) else bare
        if isinstance(function, FunctionType) and _is_from(function, path):
            yield function


def _is_from(function: FunctionType, path: Path) -> bool:
    filename = function.__code__.co_filename
    return not filename.startswith("<") and Path(filename).resolve() == path
