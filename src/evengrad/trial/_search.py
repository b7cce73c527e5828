"""The search for a cure as it goes on, so that an interruption leaves what was found so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import final

from evengrad.checkup import Progress
from evengrad.nouns import Finding, Story, Task, TaskError, Trial, Verdict
from evengrad.runlog import write_story
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import Candidate, explained, proposed
from evengrad.trial._choosing import Choosing
from evengrad.trial._confirmation import Confirmation
from evengrad.trial._control import control_of
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure
from evengrad.trial._fresh_seeds import FreshSeeds
from evengrad.trial._judge import is_sick, judge
from evengrad.trial._patch import Patch
from evengrad.trial._plan import Plan
from evengrad.trial._proof import fresh_metrics, run_control
from evengrad.trial._rungs import Rungs
from evengrad.trial._runs import Runs
from evengrad.trial._seeded import seeded
from evengrad.trial._spared import tried_with
from evengrad.trial._story import curves, facts, headline, heat_maps
from evengrad.trial._suspicions import suspected
from evengrad.trial._tailored import tailored
from evengrad.trial._trained import with_trials
from evengrad.trial._user_code import untrained_metric
from evengrad.trial._without import cut_short, in_the_code, not_by_a_tool, without_findings

MOST_FULL = 5  # treated trainings of full length, as a third finalist would need
SCOUTED = 8  # parts of the untreated training after each of which its metric is measured


@final
class Search:
    """Train, explain, choose, confirm; every stage leaves its results here before the next one begins.

    Args:
        task: What does not train.
        engine: Where trainings run; closed by whoever made it.
        rungs: How far candidates are trained.
        seeds: Confirming seeds.
        seed: Of the search; the confirming ones follow it.
        budget: The most optimizer steps; None for what it takes.
    """

    def __init__(
        self, task: Task, engine: AbstractEngine, rungs: Rungs, *, seeds: int, seed: int, budget: int | None
    ) -> None:
        self.task = task
        self.rungs = rungs
        self.seed = seed
        self.seeds = seeds
        self.budget = budget
        self.most_steps = rungs.most_steps + 2 * seeds * task.steps  # of choosing and one proof
        self.log: Path | None = None
        self.interrupted = False
        self.findings: tuple[Finding, ...] = ()
        self.scout: Course | None = None
        self.lost = ""  # why there is no untreated training to look at
        self.confirmations: list[Confirmation] = []
        self.notes: list[str] = []
        self.runs = Runs(engine, self._write)
        self.seeds_to_choose = (seed, seed + 1)
        self.fresh_seeds = FreshSeeds(seed + 2, seeds, self._untreated)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every training so far."""
        return self.runs.trials

    def follow(self, progress: Progress | None) -> None:
        """Tell how the search goes on."""
        self.runs.progress = progress

    def run(self) -> None:
        """Go through all stages."""
        self._write()  # a directory of something else is refused before anything is done
        self.runs.expect(self.task.steps + self.most_steps)
        self._look()
        if self.scout is None:
            return
        if self._search():
            return
        first = self.scout, self.findings
        if self._sick_of_something_else() and not self._search() and first[1]:
            self.scout, self.findings = first

    def _search(self) -> bool:
        """Choose among treatments and confirm, until one holds; tell whether one does."""
        treatments = self._treatments()
        if not treatments:
            return False
        earlier = len(self.confirmations)
        self.runs.expect(self.most_steps)
        finalists = self._chosen(treatments)
        while finalists and self._may_go_on(self.confirmations[earlier:]):
            if not self._affordable():
                self.notes.append("The budget was used up before another candidate could be confirmed.")
                return False
            finalist = finalists[0]
            self._confirm(finalist)
            best = self.best()
            if best is not None and best.verdict().outcome != "not cured" and not best.uneven:
                return True
            finalists = [one for one in finalists[1:] if not tried_with(finalist, one)]
        return self.winner() is not None

    def _sick_of_something_else(self) -> bool:
        """Tell whether a training that was to prove something has another disease untreated; it is the scout then."""
        known = {one.code for one in self.findings}
        trained = [one for confirmation in self.confirmations for one in confirmation.before]
        other = next(
            (one for one in trained if one.findings and not known & {each.code for each in one.findings}), None
        )
        if other is None or not self._affordable(extra=1):
            return False
        found = f"with seed {other.trial.seed} {', '.join(one.code for one in other.findings)}"
        self.notes.append(
            f"Untreated, {found} speaks, which did not with seed {self.seeds_to_choose[0]}: searched again."
        )
        self.scout, self.findings = other, other.findings
        self.runs.heading = "second search, "
        # On seeds of the proof nothing has been trained but what failed there, which is not tried again.
        seeds = [one.trial.seed for one in trained if one is not other]
        self.seeds_to_choose = (other.trial.seed, next(iter(seeds), self.seeds_to_choose[0]))
        return True

    def _may_go_on(self, confirmations: Sequence[Confirmation]) -> bool:
        """Tell whether another finalist gets seeds: the second always, a third where the others gave up early."""
        full = sum(len(one.seeds) for one in confirmations)
        return len(confirmations) < 2 or full + self.seeds <= MOST_FULL

    def _look(self) -> None:
        """Train untreated, measuring the metric on the way."""
        scout = self._scouted(self.seed)
        if isinstance(scout, Failure):
            if scout.error is not None:
                raise scout.error
            self.lost = scout.trial.error
            return
        self.scout, self.findings = scout, scout.findings
        self._want_metric(scout.trial)
        if scout.findings or scout.trial.error or not suspected(scout)[0] or not self._affordable(extra=1):
            return
        self.runs.expect(self.task.steps + self.most_steps)
        other: Course | Failure | None = self._scouted(self.seed + 1)
        if isinstance(other, Course) and not other.findings and self._affordable():
            other = self.fresh_seeds.sick()
        if isinstance(other, Course) and other.findings:
            seed = other.trial.seed
            self.notes.append(f"With seed {self.seed} no rule speaks at the end; with seed {seed} it is sick.")
            self.scout, self.findings, self.seeds_to_choose = other, other.findings, (seed, self.seed)

    def _want_metric(self, scout: Trial) -> None:
        """Refuse a metric that is no number though the training is fine; where it is not, say so.

        Raises:
            TaskError: No rule speaks.
        """
        if not scout.error.startswith("validate returned"):
            return
        if not self.findings:
            raise TaskError(
                f"{self.task.name}, validate(model)",
                came=scout.error.removeprefix("validate returned "),
                wanted="a finite number",
                advice="the training went through and no rule speaks; is the metric undefined for what it predicts?",
            )
        self.notes.append(f"Of the untreated training {scout.error}.")

    def _scouted(self, seed: int) -> Course | Failure:
        steps = self.task.steps
        ends = {max(1, round(part * steps / SCOUTED)) for part in range(1, SCOUTED)} | set(self.rungs.lengths) | {steps}
        result: Course | Failure | None = None
        log = None if self.log is None else _unused(self.log / "untreated")
        for end in sorted(ends):
            plan = self._plan(self.task, "untreated", seed, stage="scout", log=log)
            try:
                ((_, result),) = self.runs.run([replace(plan, until=end)])
            except KeyboardInterrupt:
                if self.scout is None and (course := self.runs.interrupted) is not None:
                    self.scout, self.findings = course, course.findings
                raise
            if isinstance(result, Failure) or result.trial.error:
                break
        if result is None:
            raise AssertionError("a training has at least one step")
        return result

    def _treatments(self) -> list[AbstractTreatment]:
        """List what is worth a try: cures of the findings; where there is none, what may help all the same."""
        if self.scout is None:
            return []
        if self.findings:
            roots = [finding for finding in self.findings if not finding.follows]
            if roots and not any(finding.cures for finding in roots):
                return []  # what is at the root no treatment reaches; what follows from it is not worth a trial
            seed = self.seeds_to_choose[0]
            self.findings = explained(self.task, self.findings, seed=seed, progress=self._explaining)
            return proposed(tailored(self.findings, self.scout.record))
        treatments, why = suspected(self.scout)
        self.notes += why
        return treatments

    def _chosen(self, treatments: list[AbstractTreatment]) -> list[Candidate]:
        if self.scout is None:
            return []
        seeds = self.seeds_to_choose
        with seeded(seeds[0]):
            floor = untrained_metric(self.task)
        choosing = Choosing(
            self.task,
            self.runs,
            self.rungs,
            seeds=seeds,
            untreated=self.scout.trial,
            floor=floor,
            generous=self.budget is None,
            known=frozenset(one.candidate.label for one in self.confirmations),
        )
        finalists = choosing.run(treatments)
        if choosing.stopped:
            self.notes.append(f"Choosing ended early: {choosing.stopped}.")
        return finalists

    def _affordable(self, *, extra: int = 0) -> bool:
        """Tell whether the budget has room for a proof, and before that for choosing and further trainings."""
        later = (2 * self.seeds + extra) * self.task.steps + (self.rungs.most_steps if extra else 0)
        return self._room_for(later)

    def _room_for(self, steps: int) -> bool:
        return self.budget is None or self.runs.done + steps <= self.budget

    def _confirm(self, finalist: Candidate) -> None:
        """Train treated and untreated on fresh seeds; give up where more of them cannot make it good."""
        confirmation = Confirmation(finalist, self.findings)
        self.confirmations.append(confirmation)
        self.runs.expect(2 * self.seeds * self.task.steps)
        log = None if self.log is None else _unused(self.log / "treated")
        while len(confirmation.seeds) < self.seeds:
            seed, untreated = self._next_seed(confirmation)
            task, label = finalist.treated.subject, finalist.label
            after = self._plan(task, label, seed, stage="confirmation", log=log, keep_state=True)
            log = None  # of the first only
            before = self._plan(self.task, "untreated", seed, stage="confirmation")
            plans = [after] if untreated is not None else [before, after]
            results = dict(self.runs.run(plans))
            untreated = results[0] if untreated is None else untreated
            if not isinstance(untreated, Course):
                untreated = self._untreated(seed)
            if isinstance(untreated, Failure):
                self.notes.append(f"Nothing was proved on seed {seed}: untreated, {untreated.trial.error}.")
                return
            fresh = fresh_metrics(self.task, finalist.treated.subject, seed=seed)
            confirmation.add(untreated, results[len(plans) - 1], fresh)
            if confirmation.hopeless():
                return
        if confirmation.verdict().outcome in {"cured", "improved"} and confirmation.doubtful():
            self._control(confirmation)

    def _next_seed(self, confirmation: Confirmation) -> tuple[int, Course | Failure | None]:
        """Take a fresh seed, with its untreated training if there is one; a sick one, where not every seed is."""
        seen = [one for one in self.runs.trials if one.label == "untreated" and one.steps >= self.task.steps]
        missing = self.seeds - len(confirmation.seeds)
        seed, untreated, skipped = self.fresh_seeds.for_pair(
            confirmation.before,
            comes_and_goes=bool(self.findings) and not all(map(is_sick, seen)),
            may_skip=lambda: self._room_for(2 * missing * self.task.steps),
        )
        if skipped:
            said = ", ".join(map(str, skipped))
            self.notes.append(f"Untreated, not every seed is sick; the proof leaves out {said}: nothing to cure there.")
        return seed, untreated

    def _untreated(self, seed: int) -> Course | Failure:
        ((_, result),) = self.runs.run([self._plan(self.task, "untreated", seed, stage="confirmation")])
        return result

    def _control(self, confirmation: Confirmation) -> None:
        """Train the treated task on shuffled targets, on the seeds of the proof."""
        shuffled = control_of(confirmation.candidate.treated.subject)
        label = f"{confirmation.candidate.label}, targets shuffled"
        plans = [self._plan(shuffled, label, seed, stage="control") for seed in confirmation.seeds]
        if why := run_control(confirmation, self.runs, plans, self.budget):
            self.notes.append(why)

    def _plan(
        self, task: Task, label: str, seed: int, *, stage: str, log: Path | None = None, keep_state: bool = False
    ) -> Plan:
        return Plan(
            task=task,
            label=label,
            seed=seed,
            steps=self.task.steps,
            stage=stage,
            log=log,
            time_s=self.runs.time_s(self.task.steps),
            keep_state=keep_state,
        )

    @property
    def tried(self) -> bool:
        """Whether any treatment has been tried."""
        return any(trial.label != "untreated" for trial in self.trials)

    def _explaining(self, text: str, done: int, total: int) -> None:
        self.runs.tell(f"{text} ({done + 1} of {total})")

    def best(self) -> Confirmation | None:
        """Give the confirmation that came out best; None when there was none."""
        order = ("cured", "improved", "not cured")
        judged = [one for one in self.confirmations if one.seeds]
        return min(judged, key=lambda one: (order.index(one.verdict().outcome), one.uneven), default=None)

    def winner(self) -> Confirmation | None:
        """Give the confirmation that helped; None when none did."""
        best = self.best()
        return best if best is not None and self.verdict().outcome in {"cured", "improved"} else None

    def verdict(self) -> Verdict:
        """Say what the trials have shown so far."""
        best = self.best()
        without = self._without_proof() if best is None and not self.interrupted else None
        if without is not None:
            return without
        verdict = best.verdict() if best is not None else judge([], [], self.findings, floors=[])
        if self.interrupted and (best is None or best.unchecked or len(verdict.seeds) < self.seeds):
            return cut_short(verdict, self.findings, self.trials)
        if verdict.outcome == "not cured" and not self.findings and self.scout is not None:
            verdict = without_findings(self.scout, tried=True)
        elif verdict.outcome == "not cured":
            verdict = replace(verdict, message=verdict.message + in_the_code(self.findings))
        if self.interrupted and verdict.outcome == "not cured":  # others had their turn still
            return cut_short(verdict, self.findings, self.trials)
        return verdict

    def _without_proof(self) -> Verdict | None:
        """Judge a search that came to no pair of trainings; None where it had candidates and none could be trained."""
        if self.lost:
            return Verdict(outcome="not cured", message=f"the untreated training came to nothing: {self.lost}")
        if self.scout is None:
            return None
        if not self.findings:
            return without_findings(self.scout, tried=self.tried)
        by_code = not_by_a_tool(self.findings, tried=self.tried)
        return None if by_code is None else replace(by_code, metric_before=(self.scout.trial.metric,))

    def told(self, patch: Patch | None) -> Story:
        """Tell what was found, and keep it in the log."""
        cut = ("The search was interrupted: what follows is what was found until then.",) if self.interrupted else ()
        notes = [*cut, *self.notes]
        if patch is not None and patch.kind == "snippet":
            notes.append(f"The cure is code to paste and no diff: {patch.why}.".replace("..", "."))
        story = self._story(self.verdict(), self.winner(), notes=tuple(notes))
        if patch is not None and patch.kind == "diff":
            story = replace(story, patch=patch.text)
        if self.log is not None:
            write_story(self.log, story)
        return story

    def _write(self) -> None:
        if self.log is not None:
            write_story(self.log, self._story(None, None, notes=("The search is not over, or it was killed.",)))

    def _story(self, verdict: Verdict | None, winner: Confirmation | None, *, notes: tuple[str, ...]) -> Story:
        before, after = winner.courses() if winner is not None else ([], [])
        before = before or ([self.scout] if self.scout is not None else [])
        treated = winner.candidate.treated if winner is not None else None
        return Story(
            title=f"Repair: {self.task.name}",
            headline=headline(self.findings, verdict),
            findings=with_trials(self.findings, self.trials, winner.candidate.label if winner is not None else ""),
            heat_maps=(
                *(heat_maps(before[0].record, "before") if before else ()),
                *(heat_maps(after[0].record, "after") if after else ()),
            ),
            curves=(*curves(before, "before"), *curves(after, "after")),
            trials=self.trials,
            verdict=verdict,
            code=treated.code if treated is not None else "",
            changes=treated.changes if treated is not None else (),
            facts=facts(self.task, self.trials),
            notes=notes,
        )


def _unused(directory: Path) -> Path:
    """Give a name that no earlier search has used: its model may have been another."""
    names = (directory if number == 1 else directory.with_name(f"{directory.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())
