"""The proof: a finalist and the untreated task in pairs on fresh seeds, and on shuffled targets if it is in doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from evengrad.nouns import EvengradError, Task
from evengrad.trial._candidates import Candidate
from evengrad.trial._confirmation import Confirmation, Fresh
from evengrad.trial._control import control_of
from evengrad.trial._course import Course
from evengrad.trial._engine import Failure
from evengrad.trial._fresh_seeds import FreshSeeds
from evengrad.trial._judge import is_sick
from evengrad.trial._seeded import seeded
from evengrad.trial._trainings import Trainings
from evengrad.trial._user_code import untrained_metric


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
        while len(confirmation.seeds) < self._terms.seeds:
            if not self._paired(confirmation) or confirmation.hopeless():
                return
        if confirmation.verdict().outcome in {"cured", "improved"} and confirmation.doubtful():
            self._control(confirmation)

    def _paired(self, confirmation: Confirmation) -> bool:
        """Add a pair; tell whether there is one."""
        log = self._trainings.folder("treated") if not confirmation.seeds else None  # of the first only
        seed, known = self._next_seed(confirmation)
        untreated, treated = self._trained(confirmation.candidate, seed, known, log=log)
        if isinstance(untreated, Failure):
            self._note(f"Nothing was proved on seed {seed}: untreated, {untreated.trial.error}.")
            return False
        fresh = fresh_metrics(self._terms.task, confirmation.candidate.treated.subject, seed=seed)
        confirmation.add(untreated, treated, fresh)
        return True

    def _trained(
        self, candidate: Candidate, seed: int, known: Course | Failure | None, *, log: Path | None
    ) -> tuple[Course | Failure, Course | Failure]:
        """Train treated, and untreated where that is not known yet; untreated once more where it came to nothing."""
        plan = self._trainings.plan(candidate.treated.subject, candidate.label, seed, stage="confirmation")
        after = replace(plan, log=log, keep_state=True)
        plans = [after] if known is not None else [self._trainings.untreated(seed), after]
        *before, treated = self._trainings.run(plans)
        untreated = before[0] if known is None else known
        if isinstance(untreated, Failure):
            untreated = self._trainings.train_untreated(seed)
        return untreated, treated

    def _next_seed(self, confirmation: Confirmation) -> tuple[int, Course | Failure | None]:
        """Take a fresh seed, with its untreated training if there is one; a sick one, where not every seed is."""
        steps = self._terms.task.steps
        seen = [one for one in self._trainings.trials if one.label == "untreated" and one.steps >= steps]
        missing = self._terms.seeds - len(confirmation.seeds)
        seed, untreated, skipped = self._fresh_seeds.for_pair(
            confirmation.before,
            comes_and_goes=bool(confirmation.findings) and not all(map(is_sick, seen)),
            may_skip=lambda: self._trainings.room_for(2 * missing * steps),
        )
        if skipped:
            said = ", ".join(map(str, skipped))
            self._note(f"Untreated, not every seed is sick; the proof leaves out {said}: nothing to cure there.")
        return seed, untreated

    def _control(self, confirmation: Confirmation) -> None:
        """Train the treated task on shuffled targets, on the seeds of the proof; what gets no answer stays in doubt."""
        confirmation.unchecked = True
        candidate = confirmation.candidate
        task, label = control_of(candidate.treated.subject), f"{candidate.label}, targets shuffled"
        plans = [self._trainings.plan(task, label, seed, stage="control") for seed in confirmation.seeds]
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


def fresh_metrics(untreated: Task, treated: Task, *, seed: int) -> Fresh:
    """Measure what fresh models reach; None where one cannot be built or measured: its training will have said why."""
    return _fresh(untreated, seed), _fresh(treated, seed)


def _fresh(task: Task, seed: int) -> float | None:
    try:
        with seeded(seed):
            return untrained_metric(task)
    except EvengradError:
        return None
