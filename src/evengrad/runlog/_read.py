"""Read a run log: all files of a rank, all restarts, up to the first damage of each, and say what is missing."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from evengrad.nouns import LayerReading, Reading, Record, RunLogError, TornLogWarning
from evengrad.runlog._arrow import Column
from evengrad.runlog._directory import Meta, load_meta
from evengrad.runlog._file import Scan, scan
from evengrad.runlog._layers import layers_columns, layers_of, layers_rows
from evengrad.runlog._log import LOG_FILE, MOST_FILES, real_kind
from evengrad.runlog._steps import NO_LAYERS, steps_columns, steps_facts, steps_rows

Files = dict[int, dict[int | None, Path]]  # by restart, then by layers file; None for the steps file


def read(directory: str | os.PathLike[str], *, rank: int = 0, live: bool = False) -> Record:
    """Read the log of a run, which may still be going on.

    Restarts are merged in their order: where a resumed run repeats steps, the later file counts. A file is read up to
    the first byte that is not part of a whole batch with a right checksum; nothing is guessed beyond it.

    `Record.complete` is true when the last process of the run ended by itself and no reading is known to be missing.
    Otherwise `Record.note` says what is: a run that was killed or still goes on, bytes that cannot be read, steps
    between two restarts, layers of a sampled step.

    Args:
        directory: A run.
        rank: Whose readings, in a distributed run.
        live: The run is known to go on: then a torn end means "not yet", and there is no warning about it.

    Raises:
        NotARunError: The directory is not a run.
        NewerRunError: The run was written by a newer evengrad.
        RunLogError: It cannot be read, or has no such rank.

    Warns:
        TornLogWarning: A file has bytes that cannot be read.

    Cost:
        15 microseconds per step for 200 parameters, 2 ms per sampled step for 200 layers; memory for Python numbers.

    Example:
        >>> import tempfile
        >>> from evengrad.nouns import Reading
        >>> from evengrad.runlog import Writer
        >>> directory = tempfile.mkdtemp()
        >>> log = Writer(directory, parameters=("weight",))
        >>> log.append(Reading(step=0, grad_norms=(1.0,)))
        >>> log.flush()
        >>> read(directory, live=True).note
        'rank00000-0000.steps.arrows: the run did not end by itself, or has not ended yet'
        >>> log.close()
        >>> read(directory).complete
        True
    """
    path = Path(directory)
    meta = load_meta(path)
    starts = [_read_start(files, meta) for _, files in sorted(_files(path, rank).items())]
    notes = _notes(starts)
    torn = [note for start in starts for note in start.torn if note in notes]
    if torn and not live:
        warnings.warn("; ".join(torn), TornLogWarning, stacklevel=2)
    merged = {reading.step: reading for start in starts for reading in start.readings}
    return Record(
        readings=tuple(merged[step] for step in sorted(merged)),
        parameters=meta.parameters,
        dtype=meta.dtype,
        source=str(directory),
        complete=not notes,
        note="; ".join(notes),
    )


@dataclass(kw_only=True, slots=True)
class _Start:
    """What one process wrote between its start and its end."""

    name: str
    readings: list[Reading] = field(default_factory=list)
    ended: bool = False
    torn: list[str] = field(default_factory=list)
    without_layers: list[int] = field(default_factory=list)  # sampled steps whose layers are not there


def _files(directory: Path, rank: int) -> Files:
    found: Files = {}
    ranks = set()
    try:
        for entry in directory.iterdir():
            match = LOG_FILE.fullmatch(entry.name)
            if match:
                ranks.add(int(match[1]))
                if not entry.is_file():
                    raise RunLogError(str(entry), came="no regular file", wanted="a log file")
                if int(match[1]) == rank:
                    found.setdefault(int(match[2]), {})[None if match[3] is None else int(match[3])] = entry
    except OSError as err:
        raise RunLogError(str(directory), came=str(err), wanted="a directory that can be read") from err
    if sum(map(len, found.values())) > MOST_FILES:
        raise RunLogError(str(directory), came="more log files", wanted=f"at most {MOST_FILES} for a rank")
    if ranks and not found:
        raise RunLogError("rank", came=str(rank), wanted=f"one of {', '.join(map(str, sorted(ranks)))}")
    return found


def _read_start(files: dict[int | None, Path], meta: Meta) -> _Start:
    steps_path = files.get(None)
    if steps_path is None:
        name = min(path.name for path in files.values())
        return _Start(name=name, torn=[f"the steps file beside {name} is missing"])
    real = real_kind(meta.dtype)

    def columns_of(facts: dict[str, str]) -> tuple[Column, ...]:
        if facts != steps_facts(meta.parameters):
            raise ValueError("steps of another run")
        return steps_columns(len(meta.parameters), real)

    steps = scan(steps_path, columns_of)
    start = _Start(name=steps.name, ended=steps.ended)
    layers = {number: _Layers(path, meta) for number, path in sorted(files.items(), key=str) if number is not None}
    for rows, batch in steps.batches:
        for arguments, number in steps_rows(batch, rows):
            found = layers[number].next(arguments["step"]) if number in layers else ()
            if number != NO_LAYERS and not found:
                start.without_layers.append(arguments["step"])
            start.readings.append(Reading(**arguments, layers=found))
    last = f"after step {start.readings[-1].step}" if start.readings else "from its start"
    start.torn += _torn(steps, last)
    for file in layers.values():
        start.torn += _torn(file.scan, file.last)
    return start


class _Layers:
    """A layers file, whose rows come in the order of the sampled steps that refer to it."""

    def __init__(self, path: Path, meta: Meta) -> None:
        real = real_kind(meta.dtype)
        self.scan = scan(path, lambda facts: layers_columns(len(layers_of(facts)), real))
        self.last = "from its start"
        self._rows = (
            row for rows, batch in self.scan.batches for row in layers_rows(batch, layers_of(self.scan.facts)) if rows
        )

    def next(self, step: int) -> tuple[LayerReading, ...]:
        """Return the layers of a step; nothing when they are not there."""
        found, layers = next(self._rows, (None, ()))
        if found is not None:
            self.last = f"after step {found}"
        return layers if found == step else ()


def _torn(file: Scan, last: str) -> list[str]:
    if not file.torn_bytes:
        return []
    if file.ended:
        return [f"{file.torn_bytes} bytes after the end marker of {file.name} do not belong to it"]
    return [f"the end of {file.name} is missing: {file.torn_bytes} bytes {last} are not a whole batch"]


def _notes(starts: list[_Start]) -> list[str]:
    """Say what is missing; what an earlier process lost and a later one repeated is not."""
    if not starts:
        return ["the run has no readings"]
    notes, reached = [], -1  # the last step read so far: a run begins at step 0
    for number, start in enumerate(starts):
        reached = start.readings[-1].step if start.readings else reached
        resumed = next((later.readings[0].step for later in starts[number + 1 :] if later.readings), None)
        if start.ended and not start.torn:
            continue
        if resumed is None:
            notes += start.torn or [f"{start.name}: the run did not end by itself, or has not ended yet"]
        elif resumed > reached + 1:
            notes += [*start.torn, f"steps {reached + 1} to {resumed - 1}, from the end of {start.name}, are not there"]
    return notes + _notes_on_layers(starts)


def _notes_on_layers(starts: list[_Start]) -> list[str]:
    steps: set[int] = set()
    for start in starts:
        steps -= {reading.step for reading in start.readings}
        steps |= set(start.without_layers)
    if not steps:
        return []
    return [f"the layers of {len(steps)} sampled steps, from {min(steps)} to {max(steps)}, are not there"]
