"""`evengrad run [options] script.py args...`: guard an unmodified training script."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from evengrad.cli._as_main import Program
from evengrad.cli._streams import complain, write_err
from evengrad.cli._when_imported import when_imported
from evengrad.nouns import EvengradError, NotARunError, SettingError, TaskError, printable

if TYPE_CHECKING:
    from evengrad.guard import Everywhere

USAGE = 2
ADVICE = "see evengrad run --help"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GuardedProgram:
    """A program and the settings of its guards.

    Args:
        program: What to run.
        clip: The norm to clip at, infinity to skip only, None for the adaptive default.
        settings: Further arguments of `Everywhere`.
    """

    program: Program
    clip: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> int:
        """Run the program and say on standard error what was guarded.

        The program's errors, its exit status and Ctrl-C pass through. torch is imported by the program itself, when and
        as it wants; the guards begin to watch right after that.
        """
        process = os.getpid()
        opened: list[Everywhere] = []
        context = contextlib.ExitStack()
        when_imported("torch", lambda: opened.append(context.enter_context(self._everywhere())))
        try:
            run = self.program.load()
        except TaskError as err:
            context.close()  # where torch was there already the guards watch by now
            return _refused(err)
        try:
            with context:
                run()
        finally:
            if os.getpid() == process:  # not in a process that the program has forked
                _tell(opened)
        return 0

    def _everywhere(self) -> Everywhere:
        from evengrad.clip import ByGlobalNorm
        from evengrad.guard import Everywhere

        clip = None if self.clip is None else ByGlobalNorm(self.clip)
        return Everywhere(clip=clip, **self.settings)


def guarded_program(words: Sequence[str]) -> GuardedProgram | int:
    """Read what follows `evengrad run`; help that was printed, or wrong usage, is an exit status instead.

    Options come before the script, everything after it belongs to the script.
    """
    try:
        return _parsed(list(words))
    except EvengradError as err:
        return _refused(err)


def _parsed(words: list[str]) -> GuardedProgram | int:
    found: dict[str, Any] = {}
    program: Program | None = None
    while words and program is None:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word in {"-h", "--help"}:
            from evengrad.cli._usage import parse

            status = parse(["run", "--help"])
            return status if isinstance(status, int) else USAGE
        if word == "-m":
            program = Program(name=_next(words, "-m", "a module"), module=True, args=tuple(words))
        elif word == "--":
            program = Program(name=_next(words, "script", "a Python file"), args=tuple(words))
        elif name in OPTIONS:
            key, read, wanted = OPTIONS[name]
            found[key] = read(name, value if equals else _next(words, name, wanted))
        elif word.startswith("-") and word != "-":
            raise _unknown(name)
        else:
            program = Program(name=word, args=tuple(words))
    if program is None:
        raise SettingError("script", came="none", wanted="a Python file, or -m and a module", advice=ADVICE)
    program.check()
    return GuardedProgram(program=program, clip=found.pop("clip", None), settings=found)


def _clip(name: str, value: str) -> float:
    if value == "off":
        return math.inf
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise SettingError(name, came=repr(value), wanted="off or a positive number")
    return number


def _count(name: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise SettingError(name, came=repr(value), wanted="a whole number from 0")
    return number


def _log(name: str, value: str) -> Path:
    """Refuse early what cannot be a run directory, without the readers of logs, which would import NumPy."""
    if not value:
        raise SettingError(name, came="no name", wanted="a run directory or a new name")
    path = Path(value).absolute()  # the script may change its working directory
    try:
        came = "a file" if path.is_file() else "a folder that holds something else" if _foreign(path) else ""
    except (OSError, ValueError) as err:
        raise SettingError(name, came=f"{type(err).__name__}: {err}", wanted="a folder that can be written to") from err
    if came:
        raise NotARunError(f"{name} {value}", came=came, wanted="a run directory or a new name")
    return path


def _foreign(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir()) and not (path / "meta.json").is_file()


OPTIONS: dict[str, tuple[str, Callable[[str, str], object], str]] = {
    "--clip": ("clip", _clip, "off or a positive number"),
    "--log": ("log", _log, "a folder"),
    "--run-log": ("log", _log, "a folder"),  # torchrun refuses --log, which could be its own --log-dir or --logs-specs
    "--max-consecutive-skips": ("max_consecutive_skips", _count, "a whole number from 0"),
}


def _next(words: list[str], name: str, wanted: str) -> str:
    if not words:
        raise SettingError(name, came="nothing after it", wanted=wanted, advice=ADVICE)
    return words.pop(0)


def _unknown(name: str) -> SettingError:
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    advice = f"perhaps you meant {near[0]}" if near else "options of the script come after it"
    return SettingError("option", came=name, wanted=f"-m, {', '.join(OPTIONS)}", advice=advice)


def _refused(err: EvengradError) -> int:
    complain(f"error: {printable(' '.join(str(err).split()))}")
    return USAGE


def _tell(opened: Sequence[Everywhere]) -> None:
    """Say what was guarded, once for all ranks."""
    if not opened:
        write_err("evengrad: the script did not import torch: nothing was guarded")
    for everywhere in opened:
        if everywhere.rank == 0:
            for line in everywhere.summary.splitlines():
                write_err(f"evengrad: {line}")
