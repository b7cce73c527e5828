"""Train, diagnose, treat, prove: the main job."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from evengrad import report
from evengrad.checkup import Progress
from evengrad.nouns import Finding, SettingError, Story, Task, Trial, Verdict
from evengrad.treat import AbstractTreatment
from evengrad.trial._engines import Engine, engine_for
from evengrad.trial._patch import patch_of
from evengrad.trial._rungs import rungs_of
from evengrad.trial._search import Search
from evengrad.trial._terms import Terms


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What `repair` found out.

    Args:
        verdict: What the trials showed.
        findings: What was wrong with the untreated training, with causes, and what trials of each cure showed.
        trials: Every trial, in the order in which they ran.
        treatment: What was confirmed; None when nothing was.
        task: The treated task, or the one that came when nothing was confirmed.
        model: A trained model of the treated task, the best of the confirming seeds; None when nothing was confirmed.
        patch: The treatment as a unified diff of the task's own source, for `git apply` or `patch -p1`; as code to
            paste where there is no such diff, which the notes of the story explain.
        code: The treatment as code to paste.
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
    code: str
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
    engine: Engine = "auto",
    address: str | None = None,
    workers: int | None = None,
    memory_bytes: int | None = None,
    time_s: float | None = None,
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Repair:
    """Train a task, diagnose it, try cures in paired trials, and say what was proved.

    One full untreated training is watched. If a rule speaks, its cures are ranked by counterfactuals on a fresh model,
    the smallest change first. Up to eight single treatments train for a sixteenth of the steps, and where the best does
    not suffice, up to four combinations: of the best with what the diagnosis of its own trial proposes, and with the
    next best. The best four go on to a quarter, where the leader may be refined by one treatment more, and then as far
    on another seed; or the best two go on to half before that, where nobody has learnt anything yet. The winner
    is confirmed by full trainings, treated and untreated, on seeds that were not used for choosing. If it shows no gain
    there, or one seed falls far behind, the next that is not akin gets its own seeds, as far as the budget goes; and if
    none holds and an untreated training of the proof has another disease, that one is searched for a cure. Every trial
    starts from fresh weights and sees the same batches in the same order; `validate` only measures. A candidate that
    raises, crashes or hangs has failed; the search goes on. Ctrl-C ends the search and returns what was found so far.

    Args:
        task: Left as it is.
        budget: The most optimizer steps, all trials together; None for what the search takes: one training to look, two
            where the first only looks odd, at most three to choose, two for each confirming seed of two finalists (a
            third has one), three where a disease comes with some seeds only, and one more for each where a gain asks
            for a control; all but the look once more where the proof meets another disease.
        seeds: Confirming seeds; one is never enough for *cured*.
        engine: Where trials run. `local`: in processes of their own, each with limits of memory and time; `here`: in
            this process, one after the other; `ray`: on a Ray cluster, with what `Task.resources` states; `auto`:
            `local`, or `here` where the task cannot be sent to another process, which the report says.
        address: Of the Ray cluster; None for one that is running, else one of this machine.
        workers: Processes of `local`; None for one for each processor.
        memory_bytes: Resident memory that each of them may have; None for its share of four fifths of the machine's.
        time_s: Seconds that one training may take; None for twenty times what the untreated one takes, and a minute.
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
    rungs = rungs_of(task.steps, _allowance(task.steps, seeds, budget))
    made, note = engine_for(task, engine, address=address, workers=workers, memory_bytes=memory_bytes, time_s=time_s)
    with closing(made):
        where = None if log is None else Path(log)
        terms = Terms(task=task, rungs=rungs, seeds=seeds, seed=seed, budget=budget, log=where)
        search = Search(terms, made, progress)
        if note:
            search.note(note)
        search.run()
        return _result(task, search)


def _result(task: Task, search: Search) -> Repair:
    found = search.found
    winner = found.winner()
    candidate = winner.candidate if winner is not None else None
    patch = None if candidate is None else patch_of(task, candidate.treatment, candidate.treated)
    story = search.told(patch)
    return Repair(
        verdict=found.verdict(),
        findings=story.findings,
        trials=found.trials,
        treatment=None if candidate is None else candidate.treatment,
        task=task if candidate is None else candidate.treated.subject,
        model=winner.best_model() if winner is not None else None,
        patch="" if patch is None else patch.text,
        code="" if candidate is None else candidate.treated.code,
        story=story,
        interrupted=found.interrupted,
    )


def _allowance(steps: int, seeds: int, budget: int | None) -> int | None:
    """Count the optimizer steps that a budget leaves for choosing; None where there is no budget."""
    if budget is None:
        return None
    fixed = steps * (1 + 2 * seeds)
    least = fixed + rungs_of(steps, 0).most_steps
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < least:
        raise SettingError(
            "budget",
            came=repr(budget),
            wanted=f"at least {least} optimizer steps",
            advice=f"that is one untreated training, half of one for a candidate, and {seeds} pairs of {steps} steps",
        )
    return budget - fixed
