"""Where trainings run: what every engine promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evengrad.nouns import EvengradError, Trial
from evengrad.trial._course import Course
from evengrad.trial._plan import Plan, Tick


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A training that came to nothing: it raised, crashed, hung, or needed more memory than it may have.

    Args:
        trial: What goes into reports; its `error` says why.
        error: What the code of the task raised, where that is known; None for a crash, a hang and the like.
    """

    trial: Trial
    error: EvengradError | None = None


def failure(plan: Plan, why: str, error: EvengradError | None = None) -> Failure:
    """Make the failure of a plan."""
    trial = Trial(label=plan.label, seed=plan.seed, steps=plan.end, stage=plan.stage, error=why[:500])
    return Failure(trial=trial, error=error)


class AbstractEngine(ABC):
    """Runs trainings, in this process or elsewhere; each gives the same numbers wherever it runs."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many trainings run at the same time."""

    @abstractmethod
    def run(self, plans: Sequence[Plan], tick: Tick) -> Iterator[tuple[int, Course | Failure]]:
        """Run all plans and give the results as they come, each with its place in `plans`.

        A plan of a training that an earlier one has brought to its `until` goes on from there where the engine still
        has it, and starts anew where it has not: the result is the same.

        Args:
            plans: No two of the same training.
            tick: Called in this process with steps that have been done.

        Raises:
            KeyboardInterrupt: Ctrl-C; what was running is given up. An engine that runs in this process gives the
                interrupted course instead, with `interrupted` set.
        """

    @abstractmethod
    def forget(self, plans: Sequence[Plan]) -> None:
        """Give up trainings that will not go on."""

    @abstractmethod
    def close(self) -> None:
        """End everything that was started."""
