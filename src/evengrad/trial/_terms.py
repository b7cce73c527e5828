"""What a search is asked for: the task, how far candidates train, the seeds of a proof, and what all of it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from evengrad.nouns import Task
from evengrad.trial._rungs import Rungs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a search is asked for.

    Args:
        task: What does not train.
        rungs: How far candidates are trained.
        seeds: How many confirming seeds.
        seed: Of the search; the confirming ones follow it.
        budget: The most optimizer steps; None for what it takes.
        log: A directory for run logs and the story; None for none.
    """

    task: Task
    rungs: Rungs
    seeds: int
    seed: int
    budget: int | None = None
    log: Path | None = None

    @property
    def proof_steps(self) -> int:
        """Optimizer steps of one proof, without a control."""
        return 2 * self.seeds * self.task.steps

    @property
    def most_steps(self) -> int:
        """Optimizer steps of choosing and one proof."""
        return self.rungs.most_steps + self.proof_steps
