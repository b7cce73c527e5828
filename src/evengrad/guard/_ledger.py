"""What becomes of a step once its numbers are known: counted, recorded, logged, told, and, if need be, taken back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from evengrad.guard._history import History, Row
from evengrad.guard._log import Log
from evengrad.guard._outcome import Decided, Outcome
from evengrad.guard._rollback import Keeper
from evengrad.guard._sampling import Sampling
from evengrad.guard._skips import LOGGER, Counts
from evengrad.guard._statistics import RunningStatistics
from evengrad.guard._voice import Voice
from evengrad.nouns import Event, Record

MOST_OPEN = 64  # steps whose numbers are on their way: the host is never further ahead of the device than that
KEEP_EVERY = 50  # steps between copies of running statistics where the host does not know whether a step was good


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """Where a step is written down.

    Args:
        counts: Counts it, and tells of it.
        history: The window of the last steps.
        log: The run log; None for none.
        statistics: The running statistics of the model; None where nothing is to be changed.
        keeper: Snapshots to go back to; None for none.
        sampling: Looks inside.
        voice: Says what the rules see.
        scaled: Whether there is a GradScaler, which leaves steps out by itself: what a bad batch has spoilt then stays.
    """

    counts: Counts
    history: History
    log: Log | None
    statistics: RunningStatistics | None
    keeper: Keeper | None
    sampling: Sampling
    voice: Voice
    scaled: bool = False


@final
class Ledger:
    """Take in steps as they go by, and settle them in order when their numbers are known.

    Args:
        books: Where they are written down.
        memory: Copies what the policies remember, for a snapshot.
        restore: Gives it back to them.
        record: Makes the window a record.
    """

    def __init__(
        self,
        books: Books,
        memory: Callable[[], Any],
        restore: Callable[[Any], None],
        record: Callable[[], Record],
    ) -> None:
        self.books = books
        self._record = record
        self._memory, self._restore = memory, restore
        self._open: deque[tuple[Row, Decided | None, Sequence[str]]] = deque()

    def add(self, row: Row, decided: Decided | None, names: Sequence[str]) -> None:
        """Take in a step, and settle what is known by now.

        Raises:
            TooManySkipsError: Too many steps in a row were skipped.
        """
        self._open.append((row, decided, names))
        statistics = self.books.statistics
        if statistics is not None and decided is not None and decided.late and row.step % KEEP_EVERY == 0:
            statistics.keep(finite_only=True)
        self.drain(wait=len(self._open) > MOST_OPEN)

    def drain(self, *, wait: bool) -> None:
        """Settle what is known; or wait, and settle all."""
        while self._open and (wait or _is_there(self._open[0][0], self._open[0][1])):
            row, decided, names = self._open.popleft()
            late = decided is not None and decided.late
            self._settle(row, None if decided is None else decided.read(), names, late=late)

    def _settle(self, row: Row, outcome: Outcome | None, names: Sequence[str], *, late: bool) -> None:
        books = self.books
        settled = replace(row, outcome=outcome)
        books.history.append(settled)
        if books.log is not None:
            books.log.append(settled)
        if outcome is not None:
            self._keep(outcome, late=late)
        event = books.counts.note(outcome, row.step, names)
        if event is not None:
            books.counts.tell(event)
        self._look(settled)
        if not self._took_back(row, outcome):
            books.counts.check(event)

    def _look(self, row: Row) -> None:
        """Let the schedule know what a step has shown, and the rules judge when it is time."""
        schedule, outcome = self.books.sampling.schedule, row.outcome
        fault = outcome is not None and outcome.skipped and not outcome.overflow
        norm = None if outcome is None or outcome.overflow else outcome.total
        burst_ends = schedule.burst_ends(row.step)
        # A loss that was handed over after `clip_` may still be on its device: nothing is waited for.
        away = isinstance(row.loss, Tensor) and row.loss.device.type != "cpu"
        loss = None if outcome is None or away else row.known_loss()
        schedule.note(loss=loss, norm=norm, skipped=fault, now=self.books.sampling.next_step)
        size = 0 if row.sample is None else len(row.sample)
        if self.books.voice.heard(burst_ends=burst_ends, size=size):
            self.books.voice.judge(self._record)

    def _keep(self, outcome: Outcome, *, late: bool) -> None:
        statistics = self.books.statistics
        if statistics is None:
            return
        if not outcome.skipped:
            if not late:
                statistics.keep(finite_only=self.books.scaled)
        elif late:
            statistics.put_back(bad_only=True)
        elif not outcome.overflow or statistics.spoiled():
            statistics.put_back()

    def _took_back(self, row: Row, outcome: Outcome | None) -> bool:
        """Take a snapshot after a good step; go back after a bad one when it is time."""
        keeper, counts = self.books.keeper, self.books.counts
        if keeper is None or outcome is None or outcome.overflow:
            return False
        if not outcome.skipped:
            keeper.good(row.step, outcome.loss, self._memory)
        reason = keeper.due(counts.in_a_row)
        if not reason:
            return False
        then, memory = keeper.back()
        self._restore(memory)
        self._open.clear()  # those steps are undone with the rest
        if self.books.statistics is not None:
            self.books.statistics.keep()
        counts.in_a_row = 0
        reason = f"{reason}: back to the weights of step {then}, learning rate times {keeper.lr_factor:.4g}"
        LOGGER.warning("step %d: %s", row.step, reason)
        counts.tell(Event(kind="rolled back", step=row.step, norm=outcome.norm if outcome else math.nan, reason=reason))
        return True


def _is_there(row: Row, decided: Decided | None) -> bool:
    return (decided is None or decided.ready()) and row.ready()
