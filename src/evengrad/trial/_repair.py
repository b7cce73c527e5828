"""Train, diagnose, treat, prove: the main job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal, final

import torch
from torch import nn

from evengrad import report
from evengrad.checkup import Progress
from evengrad.nouns import Finding, SettingError, Story, Task, Trial, Verdict
from evengrad.runlog import write_story
from evengrad.treat import AbstractTreatment
from evengrad.trial._candidates import Candidate, candidates, explained
from evengrad.trial._course import Course, Plan, run_course
from evengrad.trial._judge import judge, ranked, spread
from evengrad.trial._story import curves, facts, headline, heat_maps

MOST_CANDIDATES = 6
# Each rung trains longer and keeps fewer: all candidates for a quarter of the steps, a third of them for half.
RUNGS = ((0.25, 1.0), (0.5, 1 / 3))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What `repair` found out.

    Args:
        verdict: What the trials showed.
        findings: What was wrong with the untreated training, with causes.
        trials: Every trial, in the order in which they ran.
        treatment: What was confirmed; None when nothing was.
        task: The treated task, or the one that came when nothing was confirmed.
        model: A trained model of the treated task, the best of the confirming seeds; None when nothing was confirmed.
        patch: The treatment as code to paste.
        story: All of this as a report shows it.
        interrupted: Whether Ctrl-C ended the search early.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]
    treatment: AbstractTreatment | None
    task: Task
    model: nn.Module | None
    patch: str
    story: Story
    interrupted: bool = False

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one HTML file that opens offline.

        Args:
            path: Where to; the folder must exist.
        """
        return report.write(self.story, Path(path))

    def __str__(self) -> str:
        return report.text(self.story)


def repair(
    task: Task,
    *,
    budget: int | None = None,
    seeds: int = 3,
    engine: Literal["local"] = "local",
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Repair:
    """Train a task, diagnose it, try cures in paired trials, and say what was proved.

    One full untreated training is watched. If a rule speaks, its cures are ranked by counterfactuals on a fresh model;
    the best ones run as trials of a quarter of the steps, the best third of them for half; the winner is confirmed by
    full trainings, treated and untreated, on seeds that were not used for choosing. Every trial starts from fresh
    weights and sees the same batches in the same order. Ctrl-C ends the search and returns what was found so far.

    Args:
        task: Left as it is.
        budget: The most optimizer steps, all trials together; None for what six candidates take, about 9.5 trainings.
        seeds: Confirming seeds.
        engine: Where trials run: in this process.
        log: A directory for the run logs of the first untreated and the confirmed training, and for the story that
            `evengrad report` reads; the story is written anew after every trial, so that a killed search leaves what
            it knew.
        seed: The seed of the search; the confirming ones follow it.
        progress: Called with what is going on, the steps done, and the steps there are at most.

    Raises:
        SettingError: A setting is out of range, or the budget is too small for one candidate.
        TaskError, ModelError, BatchError, LossError, OptimizerError: The task cannot be trained at all.
        NotARunError: `log` is a directory of something else.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise SettingError("seeds", came=repr(seeds), wanted="a positive whole number")
    if engine != "local":
        raise SettingError("engine", came=repr(engine), wanted="'local'")
    search = _Search(task, most=_affordable(task.steps, seeds, budget), seeds=seeds, seed=seed, log=log)
    search.progress = progress
    try:
        search.run()
    except KeyboardInterrupt:
        search.interrupted = True
    return search.result()


def _cost(steps: int, seeds: int, count: int) -> int:
    """Optimizer steps of a whole search with so many candidates."""
    return steps * (1 + 2 * seeds) + sum(_kept(count, share) * ceil(part * steps) for part, share in RUNGS)


def _kept(count: int, share: float) -> int:
    return max(1, round(count * share))


def _affordable(steps: int, seeds: int, budget: int | None) -> int:
    if budget is None:
        return MOST_CANDIDATES
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < _cost(steps, seeds, 1):
        raise SettingError(
            "budget",
            came=repr(budget),
            wanted=f"at least {_cost(steps, seeds, 1)} optimizer steps",
            advice=f"that is one candidate and {seeds} confirming seeds of {steps} steps each",
        )
    return max(count for count in range(1, MOST_CANDIDATES + 1) if _cost(steps, seeds, count) <= budget)


class _Search:
    """The search as it goes on, so that an interruption leaves what was found so far."""

    def __init__(self, task: Task, *, most: int, seeds: int, seed: int, log: str | os.PathLike[str] | None) -> None:
        self.task = task
        self.most = most
        self.seed = seed
        self.seeds = tuple(range(seed + 1, seed + 1 + seeds))
        self.log = None if log is None else Path(log)
        self.progress: Progress | None = None
        self.interrupted = False
        self.trials: list[Trial] = []
        self.findings: tuple[Finding, ...] = ()
        self.scout: Course | None = None
        self.before: list[Course] = []
        self.after: list[Course] = []
        self.winner: Candidate | None = None
        self.untrained: float | None = None
        self._done = 0
        self._total = task.steps

    def run(self) -> None:
        self._write()  # a directory of something else is refused before anything is done
        self._course(self.task, "untreated", self.seed, stage="scout", log="untreated")
        if not self.findings:
            return
        self._total = _cost(self.task.steps, len(self.seeds), self.most)
        self.untrained = self._untrained_metric()
        self.findings = explained(self.task, self.findings, seed=self.seed, progress=self._counterfactual_progress)
        chosen = candidates(self.task, self.findings, seed=self.seed, most=self.most)
        for finalist in self._halved(chosen)[:2]:
            self._confirm(finalist)
            if self._verdict().outcome in {"cured", "improved"}:
                return

    def _course(
        self, task: Task, label: str, seed: int, *, stage: str, part: float = 1.0, log: str | None = None
    ) -> Course:
        steps = ceil(part * task.steps)
        start = self._done

        def tick(count: int) -> None:
            self._done += count
            if self.progress is not None:
                self.progress(f"{stage}: {label}, seed {seed}", self._done, max(self._total, self._done))

        directory = None if self.log is None or log is None else _unused(self.log / log)
        course = run_course(Plan(task=task, label=label, seed=seed, steps=steps, stage=stage, log=directory), tick)
        self._done = start + steps  # a trial that failed early has used up its share
        self.trials.append(course.trial)
        if stage == "scout":
            self.scout, self.findings = course, course.findings
        self._write()
        if course.interrupted:
            raise KeyboardInterrupt
        return course

    def _write(self) -> None:
        if self.log is not None:
            write_story(self.log, self._story(None, None, notes=("The search is not over, or it was killed.",)))

    def _counterfactual_progress(self, text: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"{text} ({done + 1} of {total})", self._done, self._total)

    def _untrained_metric(self) -> float | None:
        """Measure the metric of a fresh model: a cure must at least beat not training at all."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.task.model().eval()
            with torch.no_grad():
                value = float(self.task.validate(model))
        return value if value == value else None  # noqa: PLR0124 - NaN is no metric

    def _halved(self, chosen: list[Candidate]) -> list[Candidate]:
        """Run the rungs and return the survivors, the best first."""
        for number, (part, share) in enumerate(RUNGS, start=1):
            chosen = chosen[: _kept(len(chosen), share)] if chosen else []
            courses = [
                self._course(one.treated.subject, one.label, self.seed, stage=f"halving {number}", part=part)
                for one in chosen
            ]
            scored = [(course.trial, one.treatment.effort) for course, one in zip(courses, chosen, strict=True)]
            chosen = [chosen[index] for index in ranked(scored, untrained=self.untrained)]
        return chosen

    def _confirm(self, finalist: Candidate) -> None:
        """Train treated and untreated on the confirming seeds; give up on the first pair that shows no gain."""
        self.winner, self.after = finalist, []
        for number, seed in enumerate(self.seeds):
            if number == len(self.before):
                self.before.append(self._course(self.task, "untreated", seed, stage="confirmation"))
            log = "treated" if number == 0 else None
            task = finalist.treated.subject
            self.after.append(self._course(task, finalist.label, seed, stage="confirmation", log=log))
            if self._verdict().outcome == "not cured":
                return

    def _verdict(self) -> Verdict:
        if self.scout is not None and not self.findings and not self.interrupted:
            metric = spread([self.scout.trial.metric])
            text = f"no rule speaks in {self.task.steps} steps; the gradients are fine; metric {metric}"
            if self.scout.trial.error:
                text = f"no rule speaks, but the training failed: {self.scout.trial.error}"
            return Verdict(outcome="was not sick", metric_before=(self.scout.trial.metric,), message=text)
        pairs = min(len(self.before), len(self.after))
        before = [course.trial for course in self.before[:pairs]]
        after = [course.trial for course in self.after[:pairs]]
        verdict = judge(before, after, self.findings, untrained=self.untrained)
        if self.interrupted and pairs < len(self.seeds):
            text = f"interrupted: {verdict.message}; nothing is proved"
            return replace(verdict, outcome="not cured", message=text)
        return verdict

    def result(self) -> Repair:
        verdict = self._verdict()
        confirmed = self.winner is not None and verdict.outcome in {"cured", "improved"}
        winner = self.winner if confirmed else None
        cut = ("The search was interrupted: what follows is what was found until then.",) if self.interrupted else ()
        story = self._story(verdict, winner, notes=cut)
        if self.log is not None:
            write_story(self.log, story)
        return Repair(
            verdict=verdict,
            findings=self.findings,
            trials=tuple(self.trials),
            treatment=winner.treatment if winner is not None else None,
            task=winner.treated.subject if winner is not None else self.task,
            model=_best_model(self.after) if winner is not None else None,
            patch=winner.treated.code if winner is not None else "",
            story=story,
            interrupted=self.interrupted,
        )

    def _story(self, verdict: Verdict | None, winner: Candidate | None, *, notes: tuple[str, ...]) -> Story:
        after = self.after if winner is not None else []
        before = self.before or ([self.scout] if self.scout is not None else [])
        shown = before[0].record if before else None
        return Story(
            title=f"Repair of {self.task.name}",
            headline=headline(self.findings, verdict, interrupted=self.interrupted),
            findings=self.findings,
            heat_maps=(
                *(heat_maps(shown, "before") if shown is not None else ()),
                *(heat_maps(after[0].record, "after") if after else ()),
            ),
            curves=(*curves(before, "before"), *curves(after, "after")),
            trials=tuple(self.trials),
            verdict=verdict,
            code=winner.treated.code if winner is not None else "",
            changes=winner.treated.changes if winner is not None else (),
            facts=facts(self.task, self.trials, self.seeds),
            notes=notes,
        )


def _unused(directory: Path) -> Path:
    """Give a name that no earlier search has used: its model may have been another."""
    number = 1
    name = directory
    while name.exists():
        number += 1
        name = directory.with_name(f"{directory.name}-{number}")
    return name


def _best_model(courses: Sequence[Course]) -> nn.Module:
    metrics = [float("-inf") if course.trial.metric is None else course.trial.metric for course in courses]
    return courses[metrics.index(max(metrics))].model
