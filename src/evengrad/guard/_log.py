"""The guard's line to a run log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch

from evengrad.guard._history import Row
from evengrad.guard._skips import LOGGER
from evengrad.nouns import Setup

if TYPE_CHECKING:
    import os


@final
class Log:
    """Write a reading per step to a run directory.

    The columns are the parameters at the start; one that is added later is guarded but not logged, which is said once.
    """

    def __init__(self, directory: str | os.PathLike[str], names: Sequence[str], dtype: str, setup: Setup) -> None:
        from evengrad.runlog import Writer

        self._count = len(names)
        self._writer = Writer(directory, parameters=tuple(names), dtype=dtype, setup=setup, rank=_rank())
        self._said = False

    def append(self, row: Row) -> None:
        """Write a step."""
        if not self._said and row.outcome is not None and len(row.outcome.norms_P) > self._count:
            self._said = True
            LOGGER.warning("parameters were added after the run log was opened: guarded, but not in the log")
        self._writer.append(row.reading(self._count))

    def update(self, setup: Setup) -> None:
        """Write what has become known of the set-up."""
        self._writer.update(setup)

    def close(self, *, ended: bool) -> None:
        """Write the rest and end the log; an exception that ended the run is remembered."""
        self._writer.close(ended=ended)


def _rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0
