"""The trainings that the stages of a search ask for: planned alike, within one budget, logged beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import final

from evengrad.nouns import Task, Trial
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._plan import Plan
from evengrad.trial._runs import Runs
from evengrad.trial._terms import Terms


@final
class Trainings:
    """Plans full trainings, runs them, and knows what the budget has room for.

    Args:
        terms: What the search is asked for.
        runs: Where trainings run.
    """

    def __init__(self, terms: Terms, runs: Runs) -> None:
        self.terms = terms
        self._runs = runs

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every training of the search so far."""
        return self._runs.trials

    def plan(self, task: Task, label: str, seed: int, *, stage: str) -> Plan:
        """Plan a training of full length, without a log and without the state of its model."""
        steps = self.terms.task.steps
        time_s = self._runs.time_s(steps)
        return Plan(task=task, label=label, seed=seed, steps=steps, stage=stage, time_s=time_s, keep_state=False)

    def untreated(self, seed: int, *, stage: str = "confirmation") -> Plan:
        """Plan an untreated training."""
        return self.plan(self.terms.task, "untreated", seed, stage=stage)

    def run(self, plans: Sequence[Plan]) -> list[Course | Failure]:
        """Run plans to their ends and give the results in the order of the plans."""
        found = dict(self._runs.run(plans))
        return [found[place] for place in sorted(found)]

    def train_untreated(self, seed: int) -> Course | Failure:
        """Train untreated for a proof."""
        (result,) = self.run([self.untreated(seed)])
        return result

    def expect(self, steps: int) -> None:
        """Count on so many optimizer steps from now on."""
        self._runs.expect(steps)

    def room_for(self, steps: int) -> bool:
        """Tell whether the budget has so many optimizer steps left."""
        budget = self.terms.budget
        return budget is None or self._runs.done + steps <= budget

    def affordable(self, *, extra: int = 0) -> bool:
        """Tell whether the budget has room for a proof, and before that for choosing and further trainings.

        Args:
            extra: Further trainings; with none there is nothing to choose any more.
        """
        terms = self.terms
        return self.room_for(terms.proof_steps + (extra * terms.task.steps + terms.rungs.most_steps if extra else 0))

    def folder(self, name: str) -> Path | None:
        """Give a directory for a run log; None where none is wanted.

        No earlier search has used it: its model may have been another.
        """
        if self.terms.log is None:
            return None
        names = (self.terms.log / (name if number == 1 else f"{name}-{number}") for number in count(1))
        return next(path for path in names if not path.exists())
