"""Trainings in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from evengrad.nouns import EvengradError
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure, failure
from evengrad.trial._plan import Plan, Tick
from evengrad.trial._training import Training


@final
class Here(AbstractEngine):
    """Run each training in this process; those that may go on are kept as they are.

    What is paused costs its memory: a model, its optimizer and the readings so far.
    """

    def __init__(self) -> None:
        self._paused: dict[tuple[str, int, int], Training] = {}

    @property
    def at_once(self) -> int:
        """One."""
        return 1

    def run(self, plans: Sequence[Plan], tick: Tick) -> Iterator[tuple[int, Course | Failure]]:
        """Run the plans in their order: `AbstractEngine.run`."""
        for place, plan in enumerate(plans):
            yield place, self._one(plan, tick)

    def _one(self, plan: Plan, tick: Tick) -> Course | Failure:
        training = self._paused.pop(plan.training, None)
        try:
            if training is None:
                training = Training(plan)
            course = training.advance(plan, tick)
        except EvengradError as err:
            if training is not None:
                training.close()
            return failure(plan, str(err), err)
        if plan.end < plan.steps and not course.trial.error:
            self._paused[plan.training] = training
        else:
            training.close()
        return course

    def forget(self, plans: Sequence[Plan]) -> None:
        """Let go of paused trainings: `AbstractEngine.forget`."""
        for plan in plans:
            if (training := self._paused.pop(plan.training, None)) is not None:
                training.close()

    def close(self) -> None:
        """Let go of all that is paused."""
        for training in self._paused.values():
            training.close()
        self._paused.clear()
