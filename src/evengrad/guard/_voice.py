"""Say what the rules see while a run goes on: each finding once, and again when its severity changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from evengrad.guard._skips import LOGGER
from evengrad.nouns import Record, printable

if TYPE_CHECKING:
    from evengrad.diagnose import Told

FIRST_STEPS = (8, 32, 100, 300)  # after so many steps the rules judge for the first times
FIRST_STEPS_OF_MANY = (8, 300)  # where there are so many layers that judging takes as long as several steps
MANY = 10_000  # numbers of a sampled step: some 400 layers
LATER_STEPS = 1000  # and then after every so many: as many as the window holds
FEWEST_STEPS = 200  # between the burst after which they judge too and the time before


@final
class Voice:
    """Let the rules judge the window now and then, and log what they say.

    They judge after 8, 32, 100 and 300 steps, then after every 1,000, which is as long as the window, and after a burst
    of sampled steps, when something has moved, but not within 200 steps of the last time: by counts and not by the
    clock, so that a run that is repeated says the same. For a model of 80 parameters one judgement takes a tenth of a
    step to half a step; for a thousand small ones three to seven steps, so that there those after 32 and 100 are left
    out.

    What is wrong in any case (not finite, a mistake in the loop) is told at once. Everything else may be on its way to
    get well, as a network whose gradient vanishes for its first steps, and is told when two judgements in a row have
    come to it.

    Args:
        tell: Whether to speak at all.
    """

    def __init__(self, *, tell: bool) -> None:
        self._tells = tell
        self._told: Told | None = None
        self._before: frozenset[str] = frozenset()  # codes of the last judgement
        self._seen = self._judged = self._size = 0
        self._failed = False

    def heard(self, *, burst_ends: bool, size: int = 0) -> bool:
        """Count a step whose numbers are there; whether the rules are to judge now.

        Args:
            burst_ends: Whether it was the last of a burst of sampled steps.
            size: How many numbers were sampled at it.
        """
        self._size = max(self._size, size)
        self._seen += 1
        if not self._tells or self._failed:
            return False
        first = FIRST_STEPS if self._size < MANY else FIRST_STEPS_OF_MANY
        due = self._seen in first or self._seen % LATER_STEPS == 0
        if due or (burst_ends and self._seen - self._judged >= FEWEST_STEPS):
            self._judged = self._seen
            return True
        return False

    def judge(self, record: Callable[[], Record]) -> None:
        """Let the rules judge, and tell what is new; a rule that fails ends the messages and not the run."""
        from evengrad.diagnose import Told, findings_of, in_one_line, rules

        try:
            found = findings_of(record())
        except Exception as err:
            self._failed = True
            LOGGER.warning("no more messages of the rules: %s: %s", type(err).__name__, printable(str(err)))
            return
        self._told = self._told or Told()
        certain = self._before | {rule.code for rule in rules.ALL if rule.tells == "always"}
        self._before = frozenset(finding.code for finding in found)
        for finding in self._told.news([finding for finding in found if finding.code in certain]):
            LOGGER.warning("%s; evengrad explain %s", in_one_line(finding), finding.code)
