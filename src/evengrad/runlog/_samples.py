"""What a writer keeps of sampled steps: the open files of one table."""

import logging
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import final

from evengrad.nouns import Reading
from evengrad.runlog._arrow import Kind
from evengrad.runlog._file import AppendOnlyFile
from evengrad.runlog._steps import LOST, NONE
from evengrad.runlog._tables import AbstractTable, Key, Row

MOST_SETS = 100  # each is an open file; a model with more of them has no layers to compare over time

_LOGGER = logging.getLogger("evengrad.runlog")


@final
class Samples:
    """Append the rows of one table to its files, of which there is one for each key."""

    def __init__(self, table: AbstractTable, steps_path: Path, real: Kind) -> None:
        self._table = table
        self._steps_path = steps_path
        self._real = real
        self._files: dict[Key, tuple[int, AppendOnlyFile]] = {}
        self._lost = False

    @property
    def name(self) -> str:
        """The field of `Reading`."""
        return self._table.name

    @property
    def files(self) -> Iterator[AppendOnlyFile]:
        """All that are open."""
        return (file for _, file in self._files.values())

    def append(self, readings: Sequence[Reading]) -> list[int]:
        """Write what was sampled, with one write for each file; returns the number of the file for each reading."""
        numbers = [NONE] * len(readings)
        rows: dict[Key, list[Row]] = {}
        for i, content in enumerate(map(attrgetter(self.name), readings)):
            if content:
                key = self._table.key(content)
                numbers[i] = self._number(key)
                if numbers[i] >= 0:
                    rows.setdefault(key, []).append((readings[i].step, content))
        for key, some in rows.items():
            self._files[key][1].append(self._table.batch(some, self._real), len(some))
        return numbers

    def _number(self, key: Key) -> int:
        if key not in self._files:
            number = len(self._files)
            if number == MOST_SETS:
                return self._lose()
            path = self._steps_path.with_name(self._steps_path.name.replace("steps", f"{self.name}-{number:03d}"))
            file = AppendOnlyFile(path, self._table.columns(key, self._real), self._table.facts(key))
            self._files[key] = number, file
        return self._files[key][0]

    def _lose(self) -> int:
        if not self._lost:
            self._lost = True
            _LOGGER.warning(
                "%s: the set of %s changed %d times; %s of further sets are not kept, steps are",
                self._steps_path.parent,
                self.name,
                MOST_SETS,
                self.name,
            )
        return LOST
