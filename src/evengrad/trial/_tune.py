"""Choosing the threshold: sweep clip policies and their numbers, and say which is worth having."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from evengrad import report
from evengrad.checkup import Progress
from evengrad.nouns import SettingError, Story, Sweep, Task
from evengrad.trial._engines import Engine, engine_for
from evengrad.trial._tune_space import OTHERS, POLICIES


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What `tune` found out.

    Args:
        sweep: Every training, what was swept, and the recommendation.
        task: The task with the recommended setting; the one that came where nothing is recommended.
        story: All of this as a report shows it.
        interrupted: Whether Ctrl-C ended the sweep early.
    """

    sweep: Sweep
    task: Task
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


def tune(
    task: Task,
    *,
    trials: int = 20,
    seeds: int = 3,
    budget: int | None = None,
    policies: Sequence[str] = POLICIES,
    sweep: Sequence[str] = (),
    engine: Engine = "here",
    address: str | None = None,
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuning:
    """Find out which clip policy and threshold suit a task, and whether it needs one at all.

    The task is trained once without clipping; its readings say from where to where each number is swept. Then come
    settings that others recommend and an even grid of thresholds, then what a sampler makes of the results so far (a
    tree-structured Parzen estimator). The metric is measured at a quarter, at half and at the end; a training that is
    below the median of those that went through, at the same step, is stopped. The best settings and no clipping are
    trained again on seeds that were not used for choosing. Recommended is the smallest intervention that cannot be told
    from the best: no clipping, if that is as good. A training that diverges or raises is a result and not the end.

    Args:
        task: Left as it is. Its own `clip` is one of the settings that are tried.
        trials: Trainings of the sweep, the one without clipping included; at least 2.
        seeds: Seeds that confirm; at least 2, since one cannot tell a gain from chance.
        budget: The most optimizer steps, all trainings together; None for no limit beside `trials`.
        policies: Which to sweep, of `ByGlobalNorm`, `ByTensorNorm`, `ByZScore`, `ByPercentile` and `ByWeightNorm`.
        sweep: What else to sweep: `lr` (a factor of the learning rate), `gain` (of the initial weights), `weights` (a
            bound of the norm of each unit's weights).
        engine: Where trainings run, as in `repair`. `here` by default, one after the other: each setting is then chosen
            knowing all before it.
        address: Of a Ray cluster.
        log: A directory for the journal and the story that `evengrad report` reads. A sweep that was killed goes on
            there with the training that it was in; one that is over can be made longer with more `trials`.
        seed: Seed of the sweep; the confirming ones follow it. The same seed chooses the same settings, as long as the
            engine runs as many trainings at once.
        progress: Called with what is going on, the steps done, and the steps there are at most.

    Raises:
        SettingError: A setting is out of range, the budget is too small, the journal in `log` is of another task or
            other settings, or another process is sweeping there.
        TaskError, ModelError, BatchError, LossError, OptimizerError: The task cannot be trained at all.
        NotARunError, RunLogError: `log` is a directory of something else, or cannot be written.

    Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization (the sampler); Golovin et al. 2017, Google
        Vizier, section 3.2.2 (the median rule); Akiba et al. 2019, arXiv:1907.10902 (Optuna).
    """
    from evengrad.trial._tune_sweeping import Settings, Sweeping  # optuna takes a while, and repair does not need it

    settings = Settings(
        trials=_whole("trials", trials, 2),
        seeds=_whole("seeds", seeds, 2),
        budget=None if budget is None else _whole("budget", budget, task.steps * (2 + 2 * seeds)),
        policies=_known("policies", policies, POLICIES),
        others=_known("sweep", sweep, OTHERS),
        seed=seed,
    )
    made, note = engine_for(task, engine, address=address)
    with closing(made):
        sweeping = Sweeping(task, settings, made, None if log is None else Path(log))
        sweeping.progress = progress
        try:
            sweeping.run()
        except KeyboardInterrupt:
            sweeping.interrupted = True
        story = sweeping.told()
    story = replace(story, notes=(*story.notes, note)) if note else story
    return Tuning(sweep=sweeping.sweep(), task=sweeping.best_task(), story=story, interrupted=sweeping.interrupted)


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(name, came=repr(value), wanted=f"a whole number of at least {least}")
    return value


def _known(name: str, values: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    listed = (values,) if isinstance(values, str) else tuple(values)
    for value in listed:
        if value not in known:
            raise SettingError(name, came=repr(value), wanted=f"any of {', '.join(known)}")
    return tuple(one for one in known if one in listed)
