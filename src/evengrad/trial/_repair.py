"""Train, diagnose, treat, prove: the main job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from torch import nn

from evengrad import report
from evengrad.checkup import Progress
from evengrad.nouns import Finding, SettingError, Story, Task, Trial, Verdict
from evengrad.treat import AbstractTreatment
from evengrad.trial._search import MOST_CANDIDATES, Search, cost


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
    full trainings, treated and untreated, on seeds that were not used for choosing. If it is not cured by that, the
    second best gets its own seeds, as far as the budget goes. Every trial starts from fresh weights and sees the same
    batches in the same order. A candidate that raises has failed; the search goes on. Ctrl-C ends the search and
    returns what was found so far.

    Args:
        task: Left as it is.
        budget: The most optimizer steps, all trials together; None for what six candidates and two confirmations take,
            at most 15.5 trainings and about 9.5 where the first is confirmed.
        seeds: Confirming seeds; one is never enough for *cured*.
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
    search = Search(task, most=_affordable(task.steps, seeds, budget), seeds=seeds, seed=seed, budget=budget)
    search.log = None if log is None else Path(log)
    search.progress = progress
    try:
        search.run()
    except KeyboardInterrupt:
        search.interrupted = True
    return _result(search)


def _result(search: Search) -> Repair:
    verdict, winner = search.verdict(), search.winner()
    story = search.told()
    return Repair(
        verdict=verdict,
        findings=search.findings,
        trials=tuple(search.trials),
        treatment=winner.candidate.treatment if winner is not None else None,
        task=winner.candidate.treated.subject if winner is not None else search.task,
        model=winner.best_model() if winner is not None else None,
        patch=winner.candidate.treated.code if winner is not None else "",
        story=story,
        interrupted=search.interrupted,
    )


def _affordable(steps: int, seeds: int, budget: int | None) -> int:
    """Count the candidates that a budget pays for, the first confirmation included."""
    if budget is None:
        return MOST_CANDIDATES
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < cost(steps, seeds, 1):
        raise SettingError(
            "budget",
            came=repr(budget),
            wanted=f"at least {cost(steps, seeds, 1)} optimizer steps",
            advice=f"that is one candidate and {seeds} confirming seeds of {steps} steps each",
        )
    return max(count for count in range(1, MOST_CANDIDATES + 1) if cost(steps, seeds, count) <= budget)
