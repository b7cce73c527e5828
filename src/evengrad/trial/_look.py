"""The look: untreated trainings that tell what there is to cure, and with which seeds it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import final

from evengrad.nouns import TaskError, Trial
from evengrad.trial._case import Case
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._fresh_metric import fresh_metric
from evengrad.trial._fresh_seeds import FreshSeeds
from evengrad.trial._suspicions import suspected
from evengrad.trial._trainings import Trainings

FRESH = 3  # untrained models: one may be lucky
SCOUTED = 8  # parts of the untreated training after each of which its metric is measured


@final
class Look:
    """Finds the case that a cure is searched for.

    Args:
        trainings: How untreated trainings are run.
        fresh_seeds: Those of the proof, where a disease comes with some seeds only.
        note: Told what the report is to say.
    """

    def __init__(self, trainings: Trainings, fresh_seeds: FreshSeeds, note: Callable[[str], None]) -> None:
        self._trainings = trainings
        self._terms = trainings.terms
        self._fresh_seeds = fresh_seeds
        self._note = note

    def first(self) -> Case | Failure:
        """Train untreated with the seed of the search.

        Raises:
            TaskError: The metric is no number though no rule speaks.
            EvengradError: What the task raised.
        """
        scout = self._scouted(self._terms.seed)
        if isinstance(scout, Failure):
            if scout.error is not None:
                raise scout.error
            return scout
        self._want_metric(scout.trial)
        return self.case_of(scout)

    def case_of(self, scout: Course) -> Case:
        """Make a case of a training with the seed of the search."""
        return Case(scout=scout, findings=scout.findings, seeds=(self._terms.seed, self._terms.seed + 1))

    def closer(self, case: Case) -> Case:
        """Train with other seeds too where no rule speaks and yet something is odd; give the first that is sick."""
        scout, seed = case.scout, self._terms.seed
        if scout.findings or scout.trial.error:
            return case
        case = replace(case, fresh=self._fresh())
        if not suspected(scout)[0] or not self._trainings.affordable(extra=1):
            return case
        self._trainings.expect(self._terms.task.steps + self._terms.most_steps)
        other: Course | Failure | None = self._scouted(seed + 1)
        if isinstance(other, Course) and not other.findings and self._trainings.affordable():
            other = self._fresh_seeds.sick()
        if not isinstance(other, Course) or not other.findings:
            return case
        sick = other.trial.seed
        self._note(f"With seed {seed} no rule speaks at the end; with seed {sick} it is sick.")
        return Case(scout=other, findings=other.findings, seeds=(sick, seed))

    def another(self, case: Case, trained: Sequence[Course]) -> Case | None:
        """Give the first training that was to prove something and has another disease; None for none, or no room.

        Args:
            case: What was searched for.
            trained: Untreated, on seeds of the proof.
        """
        known = {one.code for one in case.findings}
        other = next((one for one in trained if one.findings and not known & _codes(one)), None)
        if other is None or not self._trainings.affordable(extra=1):
            return None
        found = f"with seed {other.trial.seed} {', '.join(one.code for one in other.findings)}"
        self._note(f"Untreated, {found} speaks, which did not with seed {case.seeds[0]}: searched again.")
        # On seeds of the proof nothing has been trained but what failed there, which is not tried again.
        seeds = [one.trial.seed for one in trained if one is not other]
        return Case(scout=other, findings=other.findings, seeds=(other.trial.seed, next(iter(seeds), case.seeds[0])))

    def _fresh(self) -> float | None:
        known = [fresh_metric(self._terms.task, self._terms.seed + place) for place in range(FRESH)]
        metrics = [metric for metric in known if metric is not None]
        return median(metrics) if metrics else None

    def _scouted(self, seed: int) -> Course | Failure:
        """Train untreated, measuring the metric on the way."""
        log = self._trainings.folder("untreated")
        result: Course | Failure | None = None
        for end in self._ends():
            plan = self._trainings.untreated(seed, stage="scout")
            (result,) = self._trainings.run([replace(plan, until=end, log=log)])
            if isinstance(result, Failure) or result.trial.error:
                break
        if result is None:
            raise AssertionError("a training has at least one step")
        return result

    def _ends(self) -> list[int]:
        steps = self._terms.task.steps
        parts = {max(1, round(part * steps / SCOUTED)) for part in range(1, SCOUTED)}
        return sorted(parts | set(self._terms.rungs.lengths) | {steps})

    def _want_metric(self, scout: Trial) -> None:
        """Refuse a metric that is no number though the training is fine; where it is not, say so."""
        if not scout.error.startswith("validate returned"):
            return
        if not scout.findings:
            raise TaskError(
                f"{self._terms.task.name}, validate(model)",
                came=scout.error.removeprefix("validate returned "),
                wanted="a finite number",
                advice="the training went through and no rule speaks; is the metric undefined for what it predicts?",
            )
        self._note(f"Of the untreated training {scout.error}.")


def _codes(course: Course) -> set[str]:
    return {one.code for one in course.findings}
