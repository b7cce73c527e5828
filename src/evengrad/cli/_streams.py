"""Standard output and standard error, also where they are closed, full or no longer read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Make both streams fit to be written to.

    Raises:
        RunLogError: Standard output is closed.
    """
    from evengrad.nouns import RunLogError

    if sys.stderr is None:  # started with 2>&-; rich, tyro and warnings all expect one
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise RunLogError(
            "standard output", came="a closed one", wanted="an open one", advice="send it to /dev/null to hide it"
        )
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a bar gets a question mark, no traceback


@contextlib.contextmanager
def writing_out() -> Iterator[None]:
    """Write to standard output inside; what follows a reader's going away is written nowhere.

    Raises:
        RunLogError: It cannot be written.
    """
    from evengrad.nouns import RunLogError

    try:
        yield
    except BrokenPipeError:
        _divert(sys.stdout)
    except OSError as err:
        _divert(sys.stdout)
        came = f"{type(err).__name__}: {err}"
        raise RunLogError("standard output", came=came, wanted="a place to write to") from err


def write_out(text: str) -> None:
    """Write to standard output at once.

    Raises:
        RunLogError: It cannot be written.
    """
    with writing_out():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_err(line: str) -> None:
    """Write a line to standard error; where that is impossible there is nobody to tell."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
    except OSError:
        _divert(sys.stderr)


def complain(what: str) -> None:
    """Say in one line why the program ends."""
    write_err(f"evengrad: {' '.join(what.split())}")


def _divert(stream: Any) -> None:
    """Send what is still in a broken stream's buffer nowhere, so that Python's own last flush does not fail on it."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test or a notebook has no descriptor
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
