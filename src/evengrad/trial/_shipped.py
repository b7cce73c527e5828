"""Tasks and courses as bytes, on their way to another process and back: the only place that packs and unpacks them.

What is unpacked here was packed by this very run: by the process that started the worker, or by the worker that it
started. Nothing of the kind is ever read from a file or taken from a connection that somebody else could open.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch

from evengrad.nouns import Task, in_words, installed_folders


def packed(value: Any, *, everything: bool = False) -> bytes:
    """Pack a value with the functions, closures and classes in it.

    Functions of `__main__`, closures, lambdas and modules that the other process could not import travel by value.
    Tensors that share their memory share it there too; those on an accelerator travel by value and are put on the
    device of the same name.

    Args:
        value: A plan, a task, or what came of one.
        everything: Whether all modules of the user travel by value, for a machine that has none of their files.

    Raises:
        Exception: Whatever the pickle of something inside raises: a lock, a generator, a compiled function.
    """
    buffer = io.BytesIO()
    with _by_value(everything=everything):
        # torch's own format, because a plain pickle writes the whole memory once for every tensor that is a part of it
        torch.save(value, buffer, pickle_module=cloudpickle, pickle_protocol=cloudpickle.DEFAULT_PROTOCOL)
    return buffer.getvalue()


def unpacked(data: bytes) -> Any:
    """Unpack what `packed` made; only ever what a process of this run sent."""
    return torch.load(io.BytesIO(data), weights_only=False)


def can_be_shipped(task: Task) -> str:
    """Say why a task cannot go to another process; empty when it can.

    Cost: one copy of the data that the task's functions hold.
    """
    try:
        packed(task)
    except Exception as err:  # a pickle raises whatever the thing inside raises
        return _the_one_that_cannot(task) or in_words(err)
    return ""


def _the_one_that_cannot(task: Task) -> str:
    for field in fields(task):
        try:
            packed(getattr(task, field.name))
        except Exception as err:
            return f"Task.{field.name}: {in_words(err)}"
    return ""


@contextlib.contextmanager
def _by_value(*, everything: bool) -> Iterator[None]:
    """Have modules that the other process cannot import packed by value for a while."""
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [one for one in _modules_of_the_user() if one.__name__ not in known]
    chosen = [one for one in modules if everything or not _is_found_again(one)]
    for module in chosen:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in chosen:
            cloudpickle.unregister_pickle_by_value(module)


def _modules_of_the_user() -> list[ModuleType]:
    """Find the loaded modules that belong neither to Python, nor to an installed package, nor to this one."""
    places = installed_folders()
    own = __name__.partition(".")[0]
    found = []
    for name, module in tuple(sys.modules.items()):
        top = name.partition(".")[0]
        file = getattr(module, "__file__", None)
        if not isinstance(module, ModuleType) or not isinstance(file, str) or module.__name__ != name:
            continue
        if top not in sys.stdlib_module_names and top not in {own, "__main__"} and not file.startswith(places):
            found.append(module)
    return found


def _is_found_again(module: ModuleType) -> bool:
    """Tell whether a fresh process with the same import path finds the same file under the module's name."""
    path: Sequence[str] | None = None
    parts = module.__name__.split(".")
    for length in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:length]), path)
        if spec is None:
            return False
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return spec is not None and spec.origin is not None and _same_file(spec.origin, str(module.__file__))


def _spec(name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, path, None)) is not None:
            found: importlib.machinery.ModuleSpec = spec
            return found
    return None


def _same_file(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
