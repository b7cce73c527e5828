"""What a writer keeps on disk, apart from the writer, so that it can be closed when the writer is gone."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import final

from evengrad.nouns import Reading, RunLogError
from evengrad.runlog._arrow import Kind
from evengrad.runlog._directory import Meta
from evengrad.runlog._ends import ENDS
from evengrad.runlog._file import AppendOnlyFile
from evengrad.runlog._layers import LAYERS, WEIGHTS
from evengrad.runlog._samples import Samples
from evengrad.runlog._steps import steps_batch, steps_columns, steps_facts

LOG_FILE = re.compile(r"rank(\d{5})-(\d{4})\.(?:steps|(layers|weights|ends)-(\d{3}))\.arrows")
MOST_RESTARTS = 10_000
MOST_FILES = 20_000  # of one rank, in reading

_LOGGER = logging.getLogger("evengrad.runlog")


def real_kind(dtype: str) -> Kind:
    """Choose the kind of the statistics' columns: float32, but float64 for a run in float64, whose range is wider."""
    return "float64" if dtype == "float64" else "float32"


@final
class Log:
    """The files of one process and start, and the readings that are not in them yet."""

    def __init__(self, directory: Path, meta: Meta, rank: int) -> None:
        self.directory = directory
        self.failed = ""
        self.closed = False
        self.ended: bool | None = None  # whether the run ended by itself; None until somebody says
        self.waiting: list[Reading] = []
        self._process = os.getpid()
        self._parameters = meta.parameters
        self._real = real_kind(meta.dtype)
        self._steps_file = self._next_steps_file(rank)
        self._samples = [Samples(table, self.path, self._real) for table in (LAYERS, WEIGHTS, ENDS)]

    @property
    def path(self) -> Path:
        """The steps file."""
        return self._steps_file.path

    def forked(self) -> bool:
        """Notice a process that `fork` made: it shares our open files and must leave them alone."""
        if os.getpid() == self._process:
            return False
        self.waiting.clear()
        self.failed = "this process was forked from the one that writes the run log; only that one goes on writing"
        return True

    def flush(self) -> None:
        """Write what waits; a failure ends the log, not the training."""
        if self.forked() or self.failed or not self.waiting:
            return
        readings, self.waiting = self.waiting, []
        try:
            # First, so that a step in the log has what was sampled there too.
            files = {samples.name: samples.append(readings) for samples in self._samples}
            batch = steps_batch(readings, files, len(self._parameters), self._real)
            self._steps_file.append(batch, len(readings))
        except Exception as err:  # whatever it is, it must not end the training
            self._fail(err)

    def close(self) -> None:
        """Write what waits, and the end markers unless an exception has ended the run."""
        if self.closed:
            return
        self.flush()
        self.closed = True
        ended = getattr(sys, "last_value", None) is None if self.ended is None else self.ended
        for file in [*(file for samples in self._samples for file in samples.files), self._steps_file]:
            if self.failed or not ended:
                file.abandon()
                continue
            try:
                file.finish()
            except OSError as err:
                self._fail(err)

    def _fail(self, err: Exception) -> None:
        self.failed = f"{type(err).__name__}: {err}"
        _LOGGER.error("the run log %s ends here, the training goes on: %s", self.path, self.failed)

    def _next_steps_file(self, rank: int) -> AppendOnlyFile:
        """Open the next file, never an old one: its end may be torn."""
        try:
            matches = [LOG_FILE.fullmatch(entry.name) for entry in self.directory.iterdir()]
            start = max((int(match[2]) + 1 for match in matches if match and int(match[1]) == rank), default=0)
            for number in range(start, MOST_RESTARTS):
                path = self.directory / f"rank{rank:05d}-{number:04d}.steps.arrows"
                try:
                    columns = steps_columns(len(self._parameters), self._real)
                    return AppendOnlyFile(path, columns, steps_facts(self._parameters))
                except FileExistsError:
                    continue  # another process came first
        except OSError as err:
            raise RunLogError(str(self.directory), came=str(err), wanted="a directory that can be written to") from err
        raise RunLogError(str(self.directory), came=f"{MOST_RESTARTS} starts", wanted="fewer; begin a new directory")
