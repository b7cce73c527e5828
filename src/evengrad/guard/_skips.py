"""Count the steps left out, say so, and stop a run that only skips."""

import logging
from collections.abc import Sequence
from typing import final

import numpy as np

from evengrad.guard._apply import Outcome
from evengrad.nouns import TooManySkipsError, shortened

LOGGER = logging.getLogger("evengrad.guard")
NAMED = 5  # names in a message


@final
class Skips:
    """Count skips, all and in a row.

    Every skip is counted; the 1st, 2nd, 4th, 8th, ... in a row is logged, so that a log is not flooded.
    """

    def __init__(self, most_in_a_row: int) -> None:
        self.most_in_a_row = most_in_a_row
        self.total = 0
        self.in_a_row = 0

    def note(self, outcome: Outcome | None, step: int, names: Sequence[str]) -> None:
        """Take note of a step.

        Raises:
            TooManySkipsError: More in a row than allowed.
        """
        if outcome is None or not outcome.skipped:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        where = culprits(outcome, names)
        if self.in_a_row & (self.in_a_row - 1) == 0:
            LOGGER.warning("step %d skipped (%d in a row): gradient not finite: %s", step, self.in_a_row, where)
        if self.in_a_row > self.most_in_a_row:
            raise TooManySkipsError(
                "gradients",
                came=f"{self.in_a_row} skipped steps in a row, the last at step {step}, not finite in {where}",
                wanted=f"at most {self.most_in_a_row}",
                advice="lower the learning rate, or look at these layers' inputs",
            )


def culprits(outcome: Outcome, names: Sequence[str]) -> str:
    """Name the first parameters whose norm is not finite."""
    bad = np.flatnonzero(~np.isfinite(outcome.norms_P))
    if not len(bad):
        return "no single parameter: all norms together, or a parameter that is not guarded"
    rest = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return shortened(tuple(names[place] for place in bad[:NAMED])) + rest
