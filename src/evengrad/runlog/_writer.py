"""The writer of a run log."""

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

from evengrad.nouns import Reading, RunLogError, SettingError, Setup
from evengrad.runlog._directory import LONGEST_NAME, MOST_PARAMETERS, Meta, bring_up_to_date, open_or_create
from evengrad.runlog._log import Log
from evengrad.runlog._untrusted import SETUP, facts_with

_LARGEST_STEP = 2**63 - 1
_LOGGER = logging.getLogger("evengrad.runlog")


@final
class Writer:
    """Append the readings of a run to its directory, readable by another process while the run goes on.

    The directory and `meta.json` are made when they are not there. A directory that is a run with the same parameters
    is continued in new files (`rank00000-0001...`): what an earlier process left is never touched, and its facts stay.

    Once made, a writer never ends a training. When the disk is full or the directory is gone, it says so once through
    `logging.getLogger("evengrad.runlog")` at level ERROR, keeps the reason in `failed`, and writes no more.

    Readings wait in memory until a batch is due, at most `flush_every_steps` readings or, looked at with each
    reading, `flush_every_s` seconds; then one `write` takes them to the operating system. So a killed process loses
    at most one batch. A power loss may take more (there is no `fsync`); a checksum in each batch shows the reader
    where. When a process ends without `close`, or the writer is garbage collected, it is closed. A process made by
    `fork` leaves its parent's log alone: there, what is appended is dropped and `failed` says why.

    Not thread-safe: append, flush and close from one thread.

    Files are Arrow IPC streams. `polars.read_ipc_stream(path)` reads one, `pyarrow.ipc.open_stream(open(path, "rb"))`
    too, and what pyarrow returns DuckDB takes: `duckdb.sql("select step, loss from reader")`. Columns are named as the
    fields of `Reading`, `LayerReading` and `ParameterReading`; lists are in the order of `parameters`, `layers` or
    `weights` in the schema's metadata; `Ends` are JSON. Column `crc32` holds the checksum, in the last row of a batch.

    Args:
        directory: The run directory; parents are made too.
        parameters: Names of the parameters, in the order of `Reading.grad_norms`; may be empty.
        dtype: The gradients' dtype by torch's name. Statistics are kept in float32, in a run in float64 as float64;
            loss, total norm, scale and learning rates always as float64.
        facts: Whatever describes the run, as text: seed, versions, host.
        setup: What is known of the training before its first step; or its JSON among the facts, under `setup`. After a
            restart that of rank 0 counts, as an optimizer may have other settings then.
        rank: The process in a distributed run, 0 to 99999; each writes files of its own.
        flush_every_steps: Readings in a batch at most; 50, because writing each alone costs 20 times as much.
        flush_every_s: Age in seconds at which a batch is written although it is not full; looked at with each reading.
        clock: Returns the time in seconds; for tests.

    Raises:
        NotARunError: The directory holds something else; nothing was written.
        NewerRunError: It is a run of a newer evengrad.
        RunLogError: It is a run with other parameters, or cannot be written to.
        SettingError: A setting is out of range.

    Cost:
        For 200 parameters 10 microseconds and 0.9 kB per step; with 200 layers, 0.5 ms and 27 kB per sampled step more.
        Memory for one batch.

    Example:
        >>> import tempfile
        >>> from evengrad.nouns import Reading
        >>> from evengrad.runlog import read
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with Writer(directory, parameters=("weight", "bias")) as log:
        ...         log.append(Reading(step=0, loss=0.7, grad_norms=(3.0, 4.0), total_norm=5.0))
        ...     record = read(directory)
        >>> record.readings[0].grad_norms, record.complete
        ((3.0, 4.0), True)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        parameters: tuple[str, ...],
        dtype: str = "float32",
        facts: Mapping[str, str] | None = None,
        setup: Setup | None = None,
        rank: int = 0,
        flush_every_steps: int = 50,
        flush_every_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        meta = Meta(parameters=tuple(parameters), dtype=dtype, facts=facts_with(setup, facts or {}))
        _check_meta(meta)
        _check_range("rank", rank, 0, 99_999)
        _check_range("flush_every_steps", flush_every_steps, 1, 1_000_000)
        if not flush_every_s >= 0:  # NaN too
            raise SettingError("flush_every_s", came=repr(flush_every_s), wanted="seconds, 0 or more")
        path = Path(directory).absolute()  # a training may change its working directory
        found = open_or_create(path, meta)
        _check_same(path, found, meta)
        bring_up_to_date(path, _facts_that_count(found, meta, rank))
        self._flush_every_steps, self._flush_every_s, self._clock = flush_every_steps, flush_every_s, clock
        self._parameters = len(meta.parameters)
        self._rank = rank
        self._log = Log(path, meta, rank)
        self._flushed_at_s = clock()
        self._finalizer = weakref.finalize(self, Log.close, self._log)  # at collection or at exit

    @property
    def directory(self) -> Path:
        """The run directory, absolute."""
        return self._log.directory

    @property
    def path(self) -> Path:
        """The steps file that this writer writes."""
        return self._log.path

    @property
    def failed(self) -> str:
        """Why writing ended; empty while all is well."""
        return self._log.failed

    def append(self, reading: Reading) -> None:
        """Add a reading; written when a batch is due.

        Non-finite numbers are data. Statistics too large for float32 become infinite.

        Args:
            reading: Its `grad_norms` hold one number for each parameter, or none. Steps may repeat: the later counts.

        Raises:
            RunLogError: The writer is closed, or the reading does not fit the run.
        """
        if self._log.closed:
            raise RunLogError("append", came="a closed run log", wanted="an open one", advice="make a new Writer")
        if len(reading.grad_norms) not in {0, self._parameters}:
            raise RunLogError(
                "grad_norms",
                came=f"{len(reading.grad_norms)} norms",
                wanted=f"one for each of {self._parameters} parameters",
            )
        if not -_LARGEST_STEP <= reading.step <= _LARGEST_STEP:
            raise RunLogError("step", came=str(reading.step), wanted="a number of 64 bits")
        if self._log.failed or self._log.forked():
            return
        self._log.waiting.append(reading)
        full = len(self._log.waiting) >= self._flush_every_steps
        if full or self._clock() - self._flushed_at_s >= self._flush_every_s:
            self.flush()

    def update(self, setup: Setup) -> None:
        """Put another set-up in place of the first one: of some of it the training itself has to tell.

        Only rank 0 does. Never raises; what goes wrong is said on the logger, and the log goes on.
        """
        if self._log.closed or self._log.failed or self._log.forked() or self._rank != 0:
            return
        try:
            bring_up_to_date(self.directory, facts_with(setup, {}))
        except Exception as err:  # whatever it is, it must not end the training
            _LOGGER.warning("the set-up in %s stays as it was at the start: %s", self.directory, err)

    def flush(self) -> None:
        """Write what waits now. Never raises; `failed` says what went wrong."""
        self._flushed_at_s = self._clock()
        self._log.flush()

    def close(self, *, ended: bool = True) -> None:
        """Write what waits, and the mark that the run ended by itself. May be called again.

        Args:
            ended: False leaves out the mark, so that a reader says that the run was cut off. A process that ends by
                an exception without closing leaves it out too.
        """
        self._log.ended = ended
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(ended=kind is None)

    def __repr__(self) -> str:
        return f"Writer({str(self.directory)!r}, file={self.path.name!r}, parameters={self._parameters})"


def _facts_that_count(found: Meta, meta: Meta, rank: int) -> dict[str, str]:
    """Choose what a restart changes: the set-up, which is that of the last start of rank 0."""
    counts = SETUP in meta.facts and (rank == 0 or SETUP not in found.facts)
    return {SETUP: meta.facts[SETUP]} if counts else {}


def _check_meta(meta: Meta) -> None:
    if len(meta.parameters) > MOST_PARAMETERS:
        raise SettingError("parameters", came=f"{len(meta.parameters)} names", wanted=f"at most {MOST_PARAMETERS}")
    for name in (*meta.parameters, meta.dtype):
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise SettingError(
                "parameters and dtype", came=repr(name)[:100], wanted=f"names of 1 to {LONGEST_NAME} characters"
            )
    for key, text in meta.facts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise SettingError("facts", came=repr({key: text})[:100], wanted="texts by name")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SettingError(name, came=repr(value), wanted=f"a whole number from {least} to {most}")


def _check_same(path: Path, found: Meta, wanted: Meta) -> None:
    """Refuse to mix two runs in one directory, naming the first difference."""
    advice = "begin a new directory"
    for position, (old, new) in enumerate(zip(found.parameters, wanted.parameters, strict=False)):
        if old != new:
            raise RunLogError(
                f"{path}: parameter {position}",
                came=repr(new),
                wanted=f"{old!r} as in the run that is there",
                advice=advice,
            )
    if len(found.parameters) != len(wanted.parameters):
        raise RunLogError(
            f"{path}: parameters",
            came=f"{len(wanted.parameters)} names",
            wanted=f"the {len(found.parameters)} of the run that is there",
            advice=advice,
        )
    if found.dtype != wanted.dtype:
        raise RunLogError(
            f"{path}: dtype", came=wanted.dtype, wanted=f"{found.dtype} as in the run that is there", advice=advice
        )
