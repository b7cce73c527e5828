"""Weights that nobody trains: as drawn at the start, and still untouched when enough steps have gone by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from evengrad.guard._sent import Sent
from evengrad.probe import Untouched, those

# Others may train in turns: a game lets its critic go a hundred steps ahead. After so many steps, and at each
# doubling, it is looked at who has been moved.
FIRST_LOOK = 128
# At the end of a run a few will do: what was meant to be trained has been by then.
FEWEST_STEPS = 8


@final
class Left:
    """Watch the weights that no optimizer here holds and that look as drawn.

    Args:
        named: These weights.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._untouched = Untouched(named)
        self._steps = 0
        self._next = FIRST_LOOK
        self._on_its_way: tuple[tuple[str, ...], Sent] | None = None
        self.names: tuple[str, ...] = ()

    def step(self) -> bool:
        """Count a step, look when it is time, and tell whether there is news in `names`.

        On an accelerator what is seen comes some steps later: nothing is waited for.
        """
        if not self._untouched:
            return False
        self._steps += 1
        if self._steps == self._next:
            self._next *= 2
            self._begin()
        return self._on_its_way is not None and self._on_its_way[1].ready() and self._end(self._on_its_way)

    def last(self) -> bool:
        """Look once more at the end, wait for it, and tell whether there is news in `names`."""
        if not self._untouched or self._steps < FEWEST_STEPS:
            return False
        return self._end(self._begin())

    def _begin(self) -> tuple[tuple[str, ...], Sent]:
        names, flags = self._untouched.look()
        self._on_its_way = names, Sent(flags)
        return self._on_its_way

    def _end(self, seen: tuple[tuple[str, ...], Sent]) -> bool:
        (names, sent), self._on_its_way = seen, None
        before, self.names = self.names, those(names, sent.read())
        return self.names != before
