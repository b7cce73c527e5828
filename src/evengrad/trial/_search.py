"""The search for a cure as it goes on, so that an interruption leaves what was found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import final

from torch import nn

from evengrad.checkup import Progress
from evengrad.diagnose import AbstractRule, rules
from evengrad.nouns import EvengradError, Finding, Outcome, Record, Story, Task, TaskError, Trial, Verdict
from evengrad.runlog import write_story
from evengrad.trial._candidates import Candidate, candidates, explained
from evengrad.trial._course import Course
from evengrad.trial._engine import failure
from evengrad.trial._judge import judge, ranked, spread
from evengrad.trial._plan import Plan
from evengrad.trial._seeded import seeded
from evengrad.trial._story import curves, facts, headline, heat_maps
from evengrad.trial._training import run_course
from evengrad.trial._user_code import built, untrained_metric

MOST_CANDIDATES = 6
# Each rung trains longer and keeps fewer: all candidates for a quarter of the steps, a third of them for half.
RUNGS = ((0.25, 1.0), (0.5, 1 / 3))
FINALISTS = 2


def kept(count: int, share: float) -> int:
    """Count the candidates that a rung keeps."""
    return max(1, round(count * share))


def cost(steps: int, seeds: int, count: int) -> int:
    """Count the optimizer steps of a search with so many candidates and one confirmation."""
    return steps * (1 + 2 * seeds) + sum(kept(count, share) * ceil(part * steps) for part, share in RUNGS)


@final
class Confirmation:
    """A finalist and its paired trials so far, one pair per seed that was used for nothing else."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.before: list[Course] = []
        self.after: list[Course] = []
        self.failed: list[Trial] = []
        self.untrained: list[float | None] = []

    def verdict(self, findings: tuple[Finding, ...]) -> Verdict:
        """Judge the pairs that are complete."""
        after = [*(course.trial for course in self.after), *self.failed]
        pairs = min(len(self.before), len(after))
        before = [course.trial for course in self.before[:pairs]]
        return judge(before, after[:pairs], findings, untrained=self.untrained[:pairs])

    def best_model(self) -> nn.Module | None:
        """Give the treated model with the best metric."""
        metrics = [float("-inf") if course.trial.metric is None else course.trial.metric for course in self.after]
        if not metrics:
            return None
        state = self.after[metrics.index(max(metrics))].state
        with seeded(0):
            model = built(self.candidate.treated.subject)
        model.load_state_dict(state or {})
        return model


@final
class Search:
    """Train, explain, choose, confirm; every stage leaves its results here before the next one begins."""

    def __init__(self, task: Task, *, most: int, seeds: int, seed: int, budget: int | None) -> None:
        self.task = task
        self.most = most
        self.seed = seed
        self.seeds = seeds
        self.budget = budget
        self.log: Path | None = None
        self.progress: Progress | None = None
        self.interrupted = False
        self.trials: list[Trial] = []
        self.findings: tuple[Finding, ...] = ()
        self.scout: Course | None = None
        self.confirmations: list[Confirmation] = []
        self._done = 0
        self._total = task.steps
        self._planned_end = 0
        self._batches_seen: dict[int, str] = {}

    def run(self) -> None:
        """Go through all stages."""
        self._write()  # a directory of something else is refused before anything is done
        self._untreated(self.seed, stage="scout", log="untreated")
        if not self.findings:
            return
        self._total = cost(self.task.steps, self.seeds, self.most)
        self.findings = explained(self.task, self.findings, seed=self.seed, progress=self._explaining)
        chosen = candidates(self.task, self.findings, seed=self.seed, most=self.most)
        for number, finalist in enumerate(self._halved(chosen)[:FINALISTS]):
            if self.budget is not None and self._done + 2 * self.seeds * self.task.steps > self.budget:
                return
            self._confirm(finalist, first_seed=self.seed + 1 + number * self.seeds)
            if self.verdict().outcome == "cured":
                return

    def _untreated(self, seed: int, *, stage: str, log: str | None = None) -> Course:
        plan = self._plan(self.task, "untreated", seed, stage=stage, log=log)
        course = run_course(plan, self._tick(plan))
        return self._noted(course, plan)

    def _treated(self, candidate: Candidate, seed: int, *, stage: str, part: float, log: str | None) -> Course | Trial:
        """Train with a candidate; what it raises is a failed trial and not the end."""
        plan = self._plan(candidate.treated.subject, candidate.label, seed, stage=stage, part=part, log=log)
        try:
            course = run_course(plan, self._tick(plan))
        except EvengradError as err:
            trial = failure(plan, str(err), err).trial
            self._done = self._planned_end
            self.trials.append(trial)
            self._write()
            return trial
        return self._noted(course, plan)

    def _plan(
        self, task: Task, label: str, seed: int, *, stage: str, part: float = 1.0, log: str | None = None
    ) -> Plan:
        steps = ceil(part * task.steps)
        self._planned_end = self._done + steps  # a trial that fails early has used up its share
        directory = None if self.log is None or log is None else _unused(self.log / log)
        return Plan(task=task, label=label, seed=seed, steps=steps, stage=stage, log=directory)

    def _tick(self, plan: Plan) -> Callable[[int], None]:
        def tick(count: int) -> None:
            self._done += count
            if self.progress is not None:
                what = f"{plan.stage}: {plan.label}, seed {plan.seed}"
                self.progress(what, self._done, max(self._total, self._done))

        return tick

    def _noted(self, course: Course, plan: Plan) -> Course:
        self._done = self._planned_end
        self.trials.append(course.trial)
        if plan.stage == "scout":
            self.scout, self.findings = course, course.findings
        self._write()
        if course.interrupted:
            raise KeyboardInterrupt
        if self._batches_seen.setdefault(plan.seed, course.first_batch) != course.first_batch:
            raise TaskError(
                "Task.train()",
                came=f"another first batch in two trials of seed {plan.seed}",
                wanted="the same batches in the same order at every call",
                advice="return a fresh iterable; draw with torch, NumPy or random, which every trial seeds",
            )
        return course

    def _explaining(self, text: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"{text} ({done + 1} of {total})", self._done, self._total)

    def _halved(self, chosen: list[Candidate]) -> list[Candidate]:
        """Run the rungs and return the survivors that could be trained, the best first."""
        for number, (part, share) in enumerate(RUNGS, start=1):
            if not chosen:
                return []
            chosen = chosen[: kept(len(chosen), share)]
            ran = [self._treated(one, self.seed, stage=f"halving {number}", part=part, log=None) for one in chosen]
            trials = [one if isinstance(one, Trial) else one.trial for one in ran]
            order = ranked([(trial, one.treatment.effort) for trial, one in zip(trials, chosen, strict=True)])
            chosen = [chosen[index] for index in order if trials[index].metric is not None]
        return chosen

    def _confirm(self, finalist: Candidate, *, first_seed: int) -> None:
        """Train treated and untreated on fresh seeds; give up on the first pair that shows no gain."""
        confirmation = Confirmation(finalist)
        self.confirmations.append(confirmation)
        for seed in range(first_seed, first_seed + self.seeds):
            with seeded(seed):
                confirmation.untrained.append(untrained_metric(self.task))
            confirmation.before.append(self._untreated(seed, stage="confirmation"))
            log = "treated" if seed == first_seed else None
            treated = self._treated(finalist, seed, stage="confirmation", part=1.0, log=log)
            if isinstance(treated, Trial):
                confirmation.failed.append(treated)
                return
            confirmation.after.append(treated)
            if confirmation.verdict(self.findings).outcome == "not cured":
                return

    def best(self) -> Confirmation | None:
        """Give the confirmation that came out best; None when there was none."""
        order = ("cured", "improved", "not cured")
        return min(self.confirmations, key=lambda one: order.index(one.verdict(self.findings).outcome), default=None)

    def winner(self) -> Confirmation | None:
        """Give the confirmation that helped; None when none did."""
        best = self.best()
        return best if best is not None and self.verdict().outcome in {"cured", "improved"} else None

    def verdict(self) -> Verdict:
        """Say what the trials have shown so far."""
        if self.scout is not None and not self.findings and not self.interrupted:
            return _without_findings(self.scout)
        best = self.best()
        verdict = best.verdict(self.findings) if best is not None else judge([], [], self.findings, untrained=[])
        if self.interrupted and (best is None or len(verdict.seeds) < self.seeds):
            return replace(verdict, outcome="not cured", message=f"interrupted: {verdict.message}; nothing is proved")
        return verdict

    def told(self) -> Story:
        """Tell what was found, and keep it in the log."""
        cut = ("The search was interrupted: what follows is what was found until then.",) if self.interrupted else ()
        story = self._story(self.verdict(), self.winner(), notes=cut)
        if self.log is not None:
            write_story(self.log, story)
        return story

    def _write(self) -> None:
        if self.log is not None:
            write_story(self.log, self._story(None, None, notes=("The search is not over, or it was killed.",)))

    def _story(self, verdict: Verdict | None, winner: Confirmation | None, *, notes: tuple[str, ...]) -> Story:
        before = winner.before if winner is not None else [self.scout] if self.scout is not None else []
        after = winner.after if winner is not None else []
        treated = winner.candidate.treated if winner is not None else None
        return Story(
            title=f"Repair: {self.task.name}",
            headline=headline(self.findings, verdict, interrupted=self.interrupted),
            findings=self.findings,
            heat_maps=(
                *(heat_maps(before[0].record, "before") if before else ()),
                *(heat_maps(after[0].record, "after") if after else ()),
            ),
            curves=(*curves(before, "before"), *curves(after, "after")),
            trials=tuple(self.trials),
            verdict=verdict,
            code=treated.code if treated is not None else "",
            changes=treated.changes if treated is not None else (),
            facts=facts(self.task, self.trials),
            notes=notes,
        )


def _without_findings(scout: Course) -> Verdict:
    """Judge a training in which no rule speaks at the end."""
    trial = scout.trial
    if trial.error:
        text = f"the training failed and no rule says why: {trial.error}"
        return Verdict(outcome="not cured", metric_before=(trial.metric,), message=text)
    early = _spoke_early(scout.record)
    fine = "the gradients are even" if not early and not _all_zero(scout.record) else "no rule speaks at the end"
    notes = [f"{code} spoke until step {step} and fell silent" for code, step in early.items()]
    notes += (
        ["the gradient is exactly zero at the end: look at the loss and the output"] if _all_zero(scout.record) else []
    )
    text = f"{fine}; metric {spread([trial.metric])} after {trial.steps} steps" + "".join(f"; {note}" for note in notes)
    outcome: Outcome = "not cured" if _all_zero(scout.record) else "was not sick"
    return Verdict(outcome=outcome, metric_before=(trial.metric,), message=text)


def _spoke_early(record: Record) -> dict[str, int]:
    """List the rules that spoke of harm in a reading on the way, and the last step at which they did."""
    spoke: dict[str, int] = {}
    for rule in rules.ALL:
        if not isinstance(rule, AbstractRule) or rule.tells == "cause":
            continue
        for reading in record.readings:
            sign = rule.sign(reading, record)
            if sign is not None and sign.speaks:
                spoke[rule.code] = reading.step
    return spoke


def _all_zero(record: Record) -> bool:
    return bool(record.readings) and record.readings[-1].total_norm == 0.0


def _unused(directory: Path) -> Path:
    """Give a name that no earlier search has used: its model may have been another."""
    number = 1
    name = directory
    while name.exists():
        number += 1
        name = directory.with_name(f"{directory.name}-{number}")
    return name
