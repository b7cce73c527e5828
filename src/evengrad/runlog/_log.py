"""What a writer keeps on disk, apart from the writer, so that it can be closed when the writer is gone."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import final

from evengrad.nouns import LayerReading, Reading, RunLogError
from evengrad.runlog._arrow import Kind
from evengrad.runlog._directory import Meta
from evengrad.runlog._file import AppendOnlyFile
from evengrad.runlog._layers import Layers, layer_set, layers_batch, layers_columns, layers_facts
from evengrad.runlog._steps import LOST_LAYERS, NO_LAYERS, steps_batch, steps_columns, steps_facts

LOG_FILE = re.compile(r"rank(\d{5})-(\d{4})\.(?:steps|layers-(\d{3}))\.arrows")
MOST_RESTARTS = 10_000
MOST_FILES = 20_000  # of one rank, in reading
MOST_LAYER_SETS = 100  # each is an open file; a model with more of them has no layers to compare over time

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
        self._layers_lost = False
        self._process = os.getpid()
        self._parameters = meta.parameters
        self._real = real_kind(meta.dtype)
        self._layer_files: dict[Layers, tuple[int, AppendOnlyFile]] = {}
        self._steps_file = self._next_steps_file(rank)

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
            layers = self._write_layers(readings)  # first, so that a step in the log has its layers there too
            batch = steps_batch(readings, layers, len(self._parameters), self._real)
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
        for file in [*(file for _, file in self._layer_files.values()), self._steps_file]:
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

    def _write_layers(self, readings: list[Reading]) -> list[int]:
        """Write the layers of sampled steps; returns the number of the file for each reading."""
        numbers = []
        rows: dict[Layers, list[tuple[int, tuple[LayerReading, ...]]]] = {}
        for reading in readings:
            key = layer_set(reading.layers)
            numbers.append(self._layers_number(key))
            if numbers[-1] >= 0:
                rows.setdefault(key, []).append((reading.step, reading.layers))
        for key, steps in rows.items():
            self._layer_files[key][1].append(layers_batch(steps, self._real), len(steps))
        return numbers

    def _layers_number(self, key: Layers) -> int:
        if not key:
            return NO_LAYERS
        if key not in self._layer_files:
            number = len(self._layer_files)
            if number == MOST_LAYER_SETS:
                return self._lose_layers()
            path = self.path.with_name(self.path.name.replace("steps", f"layers-{number:03d}"))
            file = AppendOnlyFile(path, layers_columns(len(key), self._real), layers_facts(key))
            self._layer_files[key] = number, file
        return self._layer_files[key][0]

    def _lose_layers(self) -> int:
        if not self._layers_lost:
            self._layers_lost = True
            _LOGGER.warning(
                "%s: the set of layers changed %d times; layers of further sets are not kept, steps are",
                self.directory,
                MOST_LAYER_SETS,
            )
        return LOST_LAYERS

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
