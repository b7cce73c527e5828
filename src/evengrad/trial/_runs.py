"""Running trainings for a search: counted, noted, and checked to see the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

from evengrad.checkup import Progress
from evengrad.nouns import TaskError, Trial
from evengrad.trial._course import Course
from evengrad.trial._engine import AbstractEngine, Failure
from evengrad.trial._plan import Plan
from evengrad.trial._shown import Shown

# A training may take so many times as long as the untreated one per step, and this much for its start, before it counts
# as hanging: a treatment may double the layers, and machines are shared.
SLOWEST = 20.0
START_S = 60.0


@final
class Runs:
    """Runs plans on an engine and keeps what came of them.

    Args:
        engine: Where they run.
        noted: Called whenever a trial is new.
    """

    def __init__(self, engine: AbstractEngine, noted: Callable[[], None]) -> None:
        self.engine = engine
        self.progress: Progress | None = None
        self.done = 0
        self.total = 0
        self.heading = ""  # of what is told of the progress
        self.second_s: float | None = None
        self.interrupted: Course | None = None  # what Ctrl-C has ended, as far as it had got
        self._noted = noted
        self._shown = Shown()
        self._trials: dict[tuple[str, int, int], Trial] = {}
        self._order: dict[tuple[str, int, int], None] = {}  # as they were asked for: results come as they are ready
        self._batches_seen: dict[int, str] = {}
        self._paused: dict[tuple[str, int, int], int] = {}  # steps that need not be done again

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every training, as far as it got, in the order in which they began."""
        return tuple(self._trials[key] for key in self._order if key in self._trials)

    def time_s(self, plan_steps: int) -> float | None:
        """Say how long so many steps may take; None before any training has shown how long one takes."""
        return None if self.second_s is None else START_S + SLOWEST * self.second_s * plan_steps

    def run(self, plans: Sequence[Plan]) -> Iterator[tuple[int, Course | Failure]]:
        """Run plans; give each result with its place as soon as it is there.

        Raises:
            TaskError: Two trainings of one seed did not begin with the same batch.
            KeyboardInterrupt: Ctrl-C.
        """
        self._order |= dict.fromkeys(plan.training for plan in plans)
        planned = self.done + sum(plan.end - self._done_before(plan) for plan in plans)
        for place, result in self.engine.run(plans, self._tick(plans)):
            plan = plans[place]
            self._keep(plan, result)
            if isinstance(result, Course):
                self._learn(plan, result)
            self._noted()
            if isinstance(result, Course) and result.interrupted:
                self.interrupted = result
                raise KeyboardInterrupt
            yield place, result
        self.done = planned  # trainings that ended early have used up their share

    def _done_before(self, plan: Plan) -> int:
        return self._paused.get(plan.training, 0)

    def forget(self, plans: Sequence[Plan]) -> None:
        """Let the engine give up trainings that will not go on; asked for again, they begin anew."""
        self.engine.forget(plans)
        for plan in plans:
            self._paused.pop(plan.training, None)

    def _keep(self, plan: Plan, result: Course | Failure) -> None:
        """Note a trial, unless it is known to a later step already, and where its training has stopped."""
        known = self._trials.get(plan.training)
        if known is None or known.error or result.trial.steps >= known.steps:
            self._trials[plan.training] = result.trial
        if plan.end < plan.steps and not result.trial.error:
            self._paused[plan.training] = plan.end
        else:
            self._paused.pop(plan.training, None)

    def _learn(self, plan: Plan, course: Course) -> None:
        if self.second_s is None and course.trial.losses:
            self.second_s = course.trial.duration_s / len(course.trial.losses)
        if not course.first_batch or plan.stage == "control":  # in another order the same numbers have another sum
            return
        if self._batches_seen.setdefault(plan.seed, course.first_batch) != course.first_batch:
            raise TaskError(
                "Task.train()",
                came=f"another first batch in two trials of seed {plan.seed}",
                wanted="the same batches in the same order at every call",
                advice="return a fresh iterable; draw with torch, NumPy or random, which every trial seeds",
            )

    def _tick(self, plans: Sequence[Plan]) -> Callable[[int], None]:
        what = f"{plans[0].stage}: {plans[0].label}, seed {plans[0].seed}"
        what += f" and {len(plans) - 1} more" if len(plans) > 1 else ""

        def tick(count: int) -> None:
            self.done += count
            self.tell(what)

        return tick

    def expect(self, steps: int) -> None:
        """Count on so many optimizer steps from now on; of those counted on before, what is left is used first."""
        self.total = max(self.total, self.done + steps)

    def tell(self, what: str) -> None:
        """Tell what is going on, and how far it has come."""
        if self.progress is not None:
            self.progress(f"{self.heading}{what}", *self._shown.of(self.done, self.total))
