"""Run a script or a module as Python itself would: as `__main__`, with its own arguments, paths and tracebacks."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, final

from evengrad.nouns import TaskError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What stands in a command line after the options.

    Args:
        name: A file, or a module's dotted name.
        module: Whether it is a module.
        args: What belongs to the program itself.
    """

    name: str
    module: bool = False
    args: Sequence[str] = ()

    def check(self) -> None:
        """Refuse a file that cannot be run; a module is looked for when it is loaded, since that may run code.

        Raises:
            TaskError: It is a folder, or cannot be read.
        """
        if not self.module:
            _source(self.name)

    def load(self) -> Callable[[], None]:
        """Make ready to run: arguments, import path and the module `__main__`, which is replaced for good.

        Threads, exit handlers and pickles of the program need that module after the last line of the program too. What
        the program raises passes through, and Python shows it without the frames that led to it.

        Raises:
            TaskError: There is no such module or file.
        """
        main = ModuleType("__main__")
        sys.argv = [self.name, *self.args]
        with _shown_from_the_program():  # compiling may fail, and importing what a module is in
            code = _module(self.name, main) if self.module else _file(self.name, main)
        vars(main).update(__builtins__=builtins, __annotations__={})

        def run() -> None:
            sys.modules["__main__"] = main
            with _shown_from_the_program():
                _Code(code).exec_module(main)

        return run


@final
class _Code(InspectLoader):
    """A loader of code that there is already; running a module is what loaders are for."""

    def __init__(self, code: CodeType) -> None:
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code

    def get_source(self, fullname: str) -> None:
        return None


def _source(name: str) -> bytes:
    path = Path(name)
    if path.is_dir():
        raise TaskError(f"script {name}", came="a folder", wanted="a Python file", advice="for a package: -m NAME")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as err:
        came = "no such file" if isinstance(err, FileNotFoundError) else f"{type(err).__name__}: {err}"
        raise TaskError(f"script {name}", came=came, wanted="a Python file that can be read") from err


def _file(name: str, main: ModuleType) -> CodeType:
    path = name if Path(name).is_absolute() else f"{Path.cwd()}{os.sep}{name}"  # links and dots stay, as in Python
    _first_on_path(str(Path(name).resolve().parent))
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    vars(main).update(__package__=None, __cached__=None)
    return compile(_source(name), path, "exec", dont_inherit=True)


def _module(name: str, main: ModuleType) -> CodeType:
    _first_on_path(str(Path.cwd()))
    spec = _spec(name)
    code = spec.loader.get_code(spec.name) if isinstance(spec.loader, InspectLoader) else None
    if code is None:
        raise _no_module(name, "one without Python code")
    sys.argv[0] = spec.origin or name
    main.__file__, main.__spec__, main.__loader__, main.__package__ = spec.origin, spec, spec.loader, spec.parent
    vars(main).update(__cached__=spec.cached)
    return code


def _spec(name: str) -> ModuleSpec:
    """Find a module as `python -m` does; the packages above it are imported."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{name}.".startswith(f"{err.name}."):
            raise  # a package above it lacks something else
        raise _no_module(name, "no such module") from err
    except (ValueError, ImportError) as err:
        raise _no_module(name, f"{type(err).__name__}: {err}") from err
    if spec is None:
        raise _no_module(name, "no such module")
    if spec.submodule_search_locations is not None:
        if name.endswith(".__main__"):
            raise _no_module(name, "a package")
        try:
            return _spec(f"{name}.__main__")
        except TaskError as err:
            raise _no_module(name, "a package without __main__") from err
    return spec


def _no_module(name: str, came: str) -> TaskError:
    return TaskError(f"module {name}", came=came, wanted="a module or package that can be run from here")


def _first_on_path(folder: str) -> None:
    """Put a program's folder where `python -m evengrad` has the working directory."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


@contextlib.contextmanager
def _shown_from_the_program() -> Iterator[None]:
    """Let the traceback of the error that ends a program begin with the program, as if Python had run it."""
    try:
        yield
    except BaseException:
        sys.excepthook = functools.partial(_show, sys.excepthook)
        raise


def _show(
    shown_by: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    while trace is not None and trace.tb_frame.f_code.co_filename != __file__:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        trace = trace.tb_next
    error.__traceback__ = trace
    shown_by(kind, error, trace)
