"""The proof: a finalist and the untreated task in pairs on fresh seeds, and on shuffled targets if it is in doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import final

from evengrad.trial._candidates import Candidate
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._control import control_of
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._fresh_metric import fresh_metric
from evengrad.trial._fresh_seeds import FreshSeeds
from evengrad.trial._judge import is_sick
from evengrad.trial._trainings import Trainings

MOST_LOST = 1  # seeds of a proof: one can have no luck with its worker


@final
class Proof:
    """Gives confirmations their pairs, and the control that they ask for.

    Args:
        trainings: How trainings are run.
        fresh_seeds: Seeds that nothing was chosen by.
        note: Told what the report is to say.
    """

    def __init__(self, trainings: Trainings, fresh_seeds: FreshSeeds, note: Callable[[str], None]) -> None:
        self._trainings = trainings
        self._terms = trainings.terms
        self._fresh_seeds = fresh_seeds
        self._note = note

    def run(self, confirmation: Confirmation) -> None:
        """Train treated and untreated on fresh seeds; give up where more of them cannot make it good.

        Args:
            confirmation: Has each pair as soon as it is trained.
        """
        self._trainings.expect(self._terms.proof_steps)
        lost = 0  # seeds with which not even the untreated training could be made
        while len(confirmation.seeds) < self._terms.seeds:
            lost += not self._paired(confirmation)
            if confirmation.hopeless() or lost > MOST_LOST or (lost and not self._has_room(confirmation)):
                return
        if confirmation.verdict().outcome in {"cured", "improved"} and confirmation.doubtful():
            self._control(confirmation)

    @property
    def steps_to_come(self) -> int:
        """Optimizer steps of a proof, less those of untreated trainings that are there already."""
        return self._steps_of(self._terms.seeds)

    def _has_room(self, confirmation: Confirmation) -> bool:
        return self._trainings.room_for(self._steps_of(self._terms.seeds - len(confirmation.seeds)))

    def _steps_of(self, pairs: int) -> int:
        return (2 * pairs - min(pairs, self._fresh_seeds.waiting)) * self._terms.task.steps

    def _paired(self, confirmation: Confirmation) -> bool:
        """Add a pair; tell whether there is one."""
        log = self._trainings.folder("treated") if not confirmation.seeds else None  # of the first only
        seed, known = self._next_seed(confirmation)
        if isinstance(known, Failure):
            known = self._trainings.train_untreated(seed)
        untreated, treated = self._trained(confirmation.candidate, seed, known, log=log)
        confirmation.sick_frac = self._sick_frac(confirmation)
        if isinstance(untreated, Failure) or treated is None:
            self._note(f"Nothing was proved on seed {seed}: untreated, {untreated.trial.error}.")
            return False
        fresh = fresh_metric(self._terms.task, seed), fresh_metric(confirmation.candidate.treated.subject, seed)
        confirmation.add(untreated, treated, fresh)
        return True

    def _trained(
        self, candidate: Candidate, seed: int, known: Course | Failure | None, *, log: Path | None
    ) -> tuple[Course | Failure, Course | Failure | None]:
        """Train treated, and untreated where that is not known yet; untreated once more where it came to nothing."""
        if isinstance(known, Failure):
            return known, None
        plan = self._trainings.plan(candidate.treated.subject, candidate.label, seed, stage="confirmation")
        after = replace(plan, log=log, keep_state=True)
        if known is not None:
            return known, self._trainings.run([after])[0]
        untreated, treated = self._trainings.run([self._trainings.untreated(seed), after])
        return self._trainings.train_untreated(seed) if isinstance(untreated, Failure) else untreated, treated

    def _next_seed(self, confirmation: Confirmation) -> tuple[int, Course | Failure | None]:
        """Take a fresh seed, with its untreated training if there is one; a sick one, where not every seed is."""
        seed, untreated, skipped = self._fresh_seeds.for_pair(
            confirmation.before,
            comes_and_goes=self._sick_frac(confirmation) < 1.0,
            may_skip=lambda: self._has_room(confirmation),
        )
        confirmation.left_out += skipped
        if skipped:
            said = ", ".join(map(str, skipped))
            self._note(f"Untreated, not every seed is sick; the proof leaves out {said}: nothing to cure there.")
        return seed, untreated

    def _sick_frac(self, confirmation: Confirmation) -> float:
        """Say with what share of the seeds a disease comes, by the untreated trainings; 1 where there is none."""
        untreated = [one for one in self._trainings.trials if one.label == "untreated"]
        ended = [is_sick(one) for one in untreated if one.error or one.steps >= self._terms.task.steps]
        return mean(ended) if confirmation.findings and ended else 1.0

    def _control(self, confirmation: Confirmation) -> None:
        """Train the treated task on shuffled targets, on the seeds of the proof; what gets no answer stays in doubt."""
        confirmation.unchecked = True
        candidate = confirmation.candidate
        label = f"{candidate.label}, targets shuffled"
        plans = [
            self._trainings.plan(control_of(candidate.treated.subject, seed), label, seed, stage="control")
            for seed in confirmation.seeds
        ]
        steps = sum(plan.end for plan in plans)
        if not self._trainings.room_for(steps):
            self._note("The budget had no room for a control on shuffled targets, which so small a gain asks for.")
            return
        self._trainings.expect(steps)
        results = self._trainings.run(plans)
        if why := _no_answer(results, confirmation.after):
            self._note(why)
            return
        confirmation.control += results
        confirmation.unchecked = False


def _no_answer(controls: Sequence[Course | Failure], treated: Sequence[Course | Failure]) -> str:
    """Say why controls tell nothing of what there is to learn without the targets; empty if they do."""
    lost = next((one.trial.error for one in controls if isinstance(one, Failure)), "")
    if lost:
        return f"The control on shuffled targets came to nothing: {lost}."
    if any(one.trial.losses == other.trial.losses for one, other in zip(controls, treated, strict=True)):
        return "The targets could not be shuffled, so that there is no control of so small a gain."
    return ""
