"""A sweep as it goes on; every training leaves its result in the journal before the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import final

from evengrad.checkup import Progress
from evengrad.nouns import Ending, EvengradError, Record, Story, Sweep, SweepPoint, Task, TaskError, from_json, to_json
from evengrad.runlog import write_story
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure, failure
from evengrad.trial._plan import Plan
from evengrad.trial._sweep import JOURNAL, Asked, Study, opened
from evengrad.trial._tune_choice import better, finalists, recommended
from evengrad.trial._tune_identity import identity_of
from evengrad.trial._tune_point import point_of
from evengrad.trial._tune_space import NONE, Choice, Space, space_of
from evengrad.trial._tune_story import plain_record, ranges_of, story_of, untreated_story

# Where the metric is measured: a quarter is where most curves have parted, and costs a quarter.
PARTS = (0.25, 0.5, 1.0)
NOT_OVER = "The sweep is not over, or it was killed."


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `tune` was given, checked."""

    trials: int
    seeds: int
    budget: int | None
    policies: tuple[str, ...]
    others: tuple[str, ...]
    seed: int


@final
class Sweeping:
    """Train without clipping, sweep, confirm."""

    def __init__(self, task: Task, settings: Settings, engine: AbstractEngine, log: Path | None) -> None:
        self.task = task
        self.engine = engine
        self.progress: Progress | None = None
        self.interrupted = False
        self._settings = settings
        self._log = log
        self._space = Space(arms=())
        self._untreated: Story | None = None
        self._points: list[SweepPoint] = []
        self._confirmed: dict[str, list[SweepPoint]] = {}
        self._recommended, self._message = "", ""
        self._done, self._saved = 0, 0
        self._what = ""
        self._batches_seen: dict[int, str] = {}

    def run(self) -> None:
        """Go through all stages, from where the journal ends."""
        identity = identity_of(self.task, self._settings.policies, self._settings.others, seed=self._settings.seed)
        if self._log is not None and not (self._log / JOURNAL).exists():
            self._write(NOT_OVER)  # a directory of something else is refused before anything is done
        with opened(self._log) as storage:
            study = Study(storage, seed=self._settings.seed, identity=identity)
            self._first(study)
            self._search(study)
            self._confirm(study)

    def sweep(self) -> Sweep:
        """Give what is known so far."""
        confirmed = [point for points in self._confirmed.values() for point in points]
        return Sweep(
            ranges=ranges_of(self._space),
            points=(*self._points, *confirmed),
            recommended=self._recommended,
            message=self._message,
            steps=self.task.steps,
            saved_steps=self._saved,
        )

    def best_task(self) -> Task:
        """Give the task with the recommended setting."""
        chosen = [point for point in self._points if point.label == self._recommended]
        if not chosen:
            return self.task
        return self._space.treated(self.task, _choice_of(chosen[0]), seed=self._settings.seed)

    def told(self) -> Story:
        """Tell what was found, and keep it in the log."""
        notes = ("The sweep was interrupted: what follows is what was found until then.",) if self.interrupted else ()
        story = story_of(self.task, self.sweep(), self._untreated, code=self._code(), notes=notes)
        if self._log is not None:
            write_story(self._log, story)
        return story

    def _code(self) -> str:
        chosen = [point for point in self._points if point.label == self._recommended]
        return self._space.code(_choice_of(chosen[0])) if chosen else ""

    def _write(self, *notes: str) -> None:
        if self._log is not None:
            write_story(self._log, story_of(self.task, self.sweep(), self._untreated, code="", notes=notes))

    def _first(self, study: Study) -> None:
        """Train without clipping, for the ranges."""
        seed = self._settings.seed
        plan = Plan(task=self._without(), label=NONE, seed=seed, steps=self.task.steps, stage="scout")
        known, record = study.kept("untreated"), study.kept("record")
        if known is None or record is None:
            course = self._in_parts(plan)
            if isinstance(course, Failure):
                raise course.error or TaskError(
                    self.task.name, came=course.trial.error, wanted="a task that can be trained"
                )
            ending: Ending = "failed" if course.trial.error else "finished"
            self._untreated = untreated_story(self.task, course, point_of(Choice(), plan, course, ending))
            record = to_json(plain_record(course.record))
            study.keep("untreated", to_json(self._untreated))
            study.keep("record", record)
        else:
            self._untreated = from_json(Story, known, where="untreated")
        first = self._untreated.sweep.points[0] if self._untreated.sweep is not None else None
        if first is None:
            raise AssertionError("the untreated training is a point")
        self._points.append(first)
        self._space = space_of(
            self.task,
            from_json(Record, record, where="record"),
            policies=self._settings.policies,
            others=self._settings.others,
            failed=first.ending == "failed",
        )
        self._write(NOT_OVER)

    def _in_parts(self, plan: Plan) -> Course | Failure:
        """Train to the end, with the metric measured where that of the others is."""
        for end in _ends(self.task.steps):
            result = self._trained([_until(plan, end)])[0]
            if isinstance(result, Failure) or result.trial.error:
                return result
        return result

    def _search(self, study: Study) -> None:
        for text in study.finished():
            self._note(from_json(SweepPoint, text, where="journal"))
        planned = self._space.planned()
        while (left := self._settings.trials - len(self._points)) > 0:
            count = min(left, max(1, self.engine.at_once))
            if not self._affordable(count):
                return
            numbers = range(len(self._points) - 1, len(self._points) - 1 + count)
            asked = [
                study.ask(
                    self._space, number=at, planned=planned[at] if at < len(planned) else None, startup=len(planned)
                )
                for at in numbers
            ]
            self._run(study, asked)
            self._write(NOT_OVER)

    def _run(self, study: Study, asked: Sequence[Asked]) -> None:
        """Train up to each part, stop those that are behind, and go on with the rest."""
        alive: list[tuple[Asked, Plan]] = []
        for one in asked:
            plan = self._plan(study, one)
            if plan is not None:
                alive.append((one, plan))
        for end in _ends(self.task.steps):
            parts = [_until(plan, end) for _, plan in alive]
            going: list[tuple[Asked, Plan]] = []
            for (one, plan), part, result in zip(alive, parts, self._trained(parts), strict=True):
                metric = result.trial.metric
                if isinstance(result, Failure) or metric is None:
                    self._tell(study, one, plan, result, "failed")
                elif end == self.task.steps:
                    self._tell(study, one, plan, result, "finished")
                elif study.prunes(one, metric, end) and metric < self._without_clipping_at(end):
                    self.engine.forget([part])
                    self._tell(study, one, plan, result, "pruned")
                else:
                    going.append((one, plan))
            alive = going

    def _without_clipping_at(self, end: int) -> float:
        """Give the metric without clipping at a step: what is not behind that is not stopped."""
        first = self._points[0]
        known = dict(first.metrics).get(end) if first.ending == "finished" else None
        return inf if known is None else known

    def _plan(self, study: Study, asked: Asked) -> Plan | None:
        """Make the plan of a choice; one that is known, or that does not apply to the task, is told at once."""
        label = self._space.label(asked.choice)
        known = [point for point in self._points if point.label == label]
        plan = Plan(task=self.task, label=label, seed=self._settings.seed, steps=self.task.steps, stage="sweep")
        try:
            treated = self._space.treated(self.task, asked.choice, seed=self._settings.seed)
        except EvengradError as err:
            self._tell(study, asked, plan, failure(plan, str(err), err), "failed")
            return None
        if known:
            self._remember(study, asked, known[0])
            return None
        return Plan(task=treated, label=label, seed=plan.seed, steps=plan.steps, stage=plan.stage)

    def _tell(self, study: Study, asked: Asked, plan: Plan, result: Course | Failure, ending: Ending) -> None:
        self._remember(study, asked, point_of(asked.choice, plan, result, ending))

    def _remember(self, study: Study, asked: Asked, point: SweepPoint) -> None:
        metric = point.metric if point.ending == "finished" else None
        study.tell(asked, to_json(point), metric=metric, step=max(1, point.quantities.steps))
        self._note(point)

    def _note(self, point: SweepPoint) -> None:
        self._points.append(point)
        if point.ending == "pruned":
            self._saved += self.task.steps - point.quantities.steps

    def _confirm(self, study: Study) -> None:
        """Train the best and none on seeds of their own; more candidates only where clipping is worth something."""
        through = [point for point in self._points if point.ending == "finished" and point.metric is not None]
        if not through:
            self._recommended, self._message = recommended({NONE: self._points[:1]})
            return
        candidates = finalists(through)
        self._again(study, [self._points[0], *candidates[:1]])
        metrics = {label: [point.metric for point in points] for label, points in self._confirmed.items()}
        if candidates and better(metrics[candidates[0].label], metrics[NONE]):
            for point in candidates[1:]:
                if not self._affordable(self._settings.seeds, reserve=0):
                    break
                self._again(study, [point])
        self._recommended, self._message = recommended(self._confirmed)

    def _again(self, study: Study, points: Sequence[SweepPoint]) -> None:
        seeds = range(self._settings.seed + 1, self._settings.seed + 1 + self._settings.seeds)
        wanted = [(point, seed) for point in points for seed in seeds]
        found: dict[tuple[str, int], SweepPoint] = {}
        for point, seed in wanted:
            if (text := study.kept(f"confirmed {seed} {point.label}")) is not None:
                found[point.label, seed] = from_json(SweepPoint, text, where="journal")
        missing = [pair for pair in wanted if (pair[0].label, pair[1]) not in found]
        each = max(1, self.engine.at_once)
        for start in range(0, len(missing), each):
            batch = missing[start : start + each]
            plans = [self._confirming(point, seed) for point, seed in batch]
            for (point, seed), plan, result in zip(batch, plans, self._trained(plans), strict=True):
                failed = isinstance(result, Failure) or result.trial.metric is None
                one = point_of(_choice_of(point), plan, result, "failed" if failed else "finished")
                study.keep(f"confirmed {seed} {point.label}", to_json(one))
                found[point.label, seed] = one
        for point in points:
            self._confirmed[point.label] = [found[point.label, seed] for seed in seeds]

    def _confirming(self, point: SweepPoint, seed: int) -> Plan:
        task = self._space.treated(self.task, _choice_of(point), seed=seed)
        return Plan(task=task, label=point.label, seed=seed, steps=self.task.steps, stage="confirmation")

    def _trained(self, plans: Sequence[Plan]) -> list[Course | Failure]:
        """Run plans and give the results in their order."""
        results: dict[int, Course | Failure] = {}
        self._what = f"{plans[0].stage}: {plans[0].label}, seed {plans[0].seed}" if plans else ""
        for place, result in self.engine.run(plans, self._tick):
            results[place] = result
            if isinstance(result, Course):
                if result.interrupted:
                    raise KeyboardInterrupt
                self._want_same_batches(plans[place], result)
        return [results[place] for place in range(len(plans))]

    def _want_same_batches(self, plan: Plan, course: Course) -> None:
        if self._batches_seen.setdefault(plan.seed, course.first_batch) != course.first_batch:
            raise TaskError(
                "Task.train()",
                came=f"another first batch in two trials of seed {plan.seed}",
                wanted="the same batches in the same order at every call",
                advice="return a fresh iterable; draw with torch, NumPy or random, which every trial seeds",
            )

    def _tick(self, count: int) -> None:
        self._done += count
        if self.progress is not None:
            most = self.task.steps * (self._settings.trials + 4 * self._settings.seeds)
            most = most if self._settings.budget is None else min(most, self._settings.budget)
            self.progress(self._what, self._done, max(most, self._done))

    def _affordable(self, trainings: int, *, reserve: int | None = None) -> bool:
        """Tell whether the budget pays for so many trainings and, unless told otherwise, a confirmation."""
        if self._settings.budget is None:
            return True
        kept = 2 * self._settings.seeds if reserve is None else reserve
        spent = sum(point.quantities.steps for point in self.sweep().points)
        return spent + (trainings + kept) * self.task.steps <= self._settings.budget

    def _without(self) -> Task:
        return Space(arms=()).treated(self.task, Choice(), seed=self._settings.seed)


def _ends(steps: int) -> list[int]:
    return sorted({ceil(part * steps) for part in PARTS})


def _until(plan: Plan, end: int) -> Plan:
    return Plan(task=plan.task, label=plan.label, seed=plan.seed, steps=plan.steps, stage=plan.stage, until=end)


def _choice_of(point: SweepPoint) -> Choice:
    return Choice(policy=point.policy, value=point.value, others=point.others)
