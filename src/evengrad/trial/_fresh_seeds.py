"""The seeds of a proof: used for nothing else, and enough of them sick where a disease comes with some seeds only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._judge import FEWEST_SICK, is_sick


@final
class FreshSeeds:
    """Hands out seeds that nothing has been chosen by, with the untreated training where there is one already.

    Whether a deep rectifier net is born dead, or a recurrent one explodes, is a matter of the seed. A proof of a cure
    needs pairs that are sick untreated, so there a seed more that is not sick proves nothing and is left out. Which
    seeds are sick is known before any treated training of theirs, so that no treated result decides. But of seeds that
    were chosen for a bad training any other one is better, so that what is cured has to be better than luck as well
    (`Confirmation`).

    Args:
        first: The first seed; they ascend.
        each: Pairs of one proof.
        train: Trains untreated with a seed.
    """

    def __init__(self, first: int, each: int, train: Callable[[int], Course | Failure]) -> None:
        self._next = first
        self._each = each
        self._train = train
        self._kept: list[Course] = []  # untreated, of seeds that are in no pair yet
        self._left_out = 0  # of this proof: as many as it has pairs at the most

    def sick(self) -> Course | None:
        """Train untreated with as many seeds as a proof has, until one is sick; None if none is.

        A proof needs these trainings anyhow: it gets those that are not sick. The seed of the sick one is used up.
        """
        for _ in range(self._each):
            result = self._train(self._taken())
            if isinstance(result, Failure):
                return None
            if result.findings:
                return result
            self._kept.append(result)
        return None

    def for_pair(
        self, before: Sequence[Course], *, comes_and_goes: bool, may_skip: Callable[[], bool]
    ) -> tuple[int, Course | Failure | None, list[int]]:
        """Give the next seed of a proof.

        Args:
            before: Its untreated trainings so far.
            comes_and_goes: Whether the disease is known to come with some seeds only.
            may_skip: Whether there is room for a training that is left out.

        Returns:
            The seed, the untreated training with it if there is one, and the seeds that were left out.
        """
        self._left_out = self._left_out if before else 0
        spared = self._each - min(FEWEST_SICK, self._each)
        healthy = sum(not is_sick(one.trial) for one in before)
        skipped: list[int] = []
        while True:
            known: Course | Failure | None = self._kept.pop(0) if self._kept else None
            seed = known.trial.seed if known is not None else self._taken()
            if not comes_and_goes:
                return seed, known, skipped
            known = self._train(seed) if known is None else known
            if isinstance(known, Failure) or is_sick(known.trial) or healthy < spared:
                return seed, known, skipped
            if self._left_out == self._each or not may_skip():
                return seed, known, skipped
            self._left_out += 1
            skipped.append(seed)

    @property
    def waiting(self) -> int:
        """How many untreated trainings are there for the next proof."""
        return len(self._kept)

    def _taken(self) -> int:
        self._next += 1
        return self._next - 1
