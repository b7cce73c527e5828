"""What the command line writes: results to standard output, progress to standard error."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from evengrad.cli._streams import write_err, write_out
from evengrad.nouns import printable, to_plain

JSON = "Write JSON to standard output instead of text."
PLAIN_EVERY_S = 10.0  # without a terminal, a line of progress this often


def say(result: Any, *, as_json: bool) -> None:
    """Write a result: a text, or nouns (or a dictionary of them) as JSON.

    Raises:
        RunLogError: Standard output cannot be written.
    """
    if not as_json:
        write_out(f"{result}\n")
        return
    plain = {key: to_plain(value) for key, value in result.items()} if isinstance(result, dict) else to_plain(result)
    write_out(json.dumps(plain, allow_nan=False, ensure_ascii=False) + "\n")


class Progress:
    """Show a progress bar on standard error; where that is no terminal, a line now and then; quiet for JSON.

    An instance is the callback that `checkup` and `repair` take: `progress(what, done, total)`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._shown = not quiet
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._spoken_s = time.monotonic()

    def __enter__(self) -> Progress:
        if self._shown and self._console.is_terminal:
            columns = (
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[what]}"),
            )
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note of the progress."""
        if self._bars is not None:
            if self._task is None:
                self._task = self._bars.add_task("", total=total, what=Text(what))
            self._bars.update(self._task, completed=done, total=total, what=_shown(what))
        elif self._shown and time.monotonic() - self._spoken_s > PLAIN_EVERY_S:
            self._spoken_s = time.monotonic()
            write_err(f"{done} of {total}: {what}")


def _shown(what: str) -> Text:
    """Show names of the user's model as text, never as rich's markup."""
    return Text(printable(what)[:100])
