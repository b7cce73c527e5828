"""Progress as it is shown: its share never goes backwards, though more to do may turn up on the way."""

from __future__ import annotations

from fractions import Fraction
from typing import final


@final
class Shown:
    """Turn what is done, and what there is in all, into two numbers whose ratio only grows.

    Where there is more to do all of a sudden, the rest of the bar stands for the rest of the work: the total that is
    shown rises with what is done, and is the true one in the end.

    Example:
        >>> shown = Shown()
        >>> [shown.of(done, total) for done, total in [(50, 100), (80, 100), (80, 200), (140, 200), (200, 200)]]
        [(50, 100), (80, 100), (80, 100), (140, 155), (200, 200)]
    """

    def __init__(self) -> None:
        self._last = 0, 0
        self._wanted = 0
        self._since = 0, Fraction(0)

    def of(self, done: int, total: int) -> tuple[int, int]:
        """Give what to show.

        Args:
            done: Of all that there is; less than before counts as that.
            total: All that there is, as far as is known; at least what is done.
        """
        before, shown = self._last
        done, total = max(done, before), max(total, done, 1)
        if total != self._wanted:
            self._wanted = total
            self._since = before, Fraction(before, shown) if shown else Fraction(0)
        most = done * shown // before if before else total  # more would be a smaller share than that before
        self._last = done, max(shown, min(most, self._total(done, total)))
        return self._last

    def _total(self, done: int, total: int) -> int:
        start, share = self._since
        if start in {done, total}:
            return self._last[1] if share else total
        share += (1 - share) * Fraction(done - start, total - start)
        return max(done, int(done / share))
