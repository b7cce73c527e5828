"""What a proof needs beside its pairs: what fresh models reach, and the same trainings on shuffled targets."""

from __future__ import annotations

from collections.abc import Sequence

from evengrad.nouns import EvengradError, Task
from evengrad.trial._confirmation import Confirmation, Fresh
from evengrad.trial._course import Course
from evengrad.trial._plan import Plan
from evengrad.trial._runs import Runs
from evengrad.trial._seeded import seeded
from evengrad.trial._user_code import untrained_metric


def fresh_metrics(untreated: Task, treated: Task, *, seed: int) -> Fresh:
    """Measure what fresh models reach; None where one cannot be built or measured: its training will have said why."""
    return _fresh(untreated, seed), _fresh(treated, seed)


def _fresh(task: Task, seed: int) -> float | None:
    try:
        with seeded(seed):
            return untrained_metric(task)
    except EvengradError:
        return None


def run_control(confirmation: Confirmation, runs: Runs, plans: Sequence[Plan], budget: int | None) -> str:
    """Train on shuffled targets, and give the confirmation what came of it.

    Args:
        confirmation: What is in doubt, and stays so without an answer.
        runs: Where trainings run.
        plans: The treated trainings with shuffled targets, one for each seed of the proof.
        budget: The most optimizer steps of the whole search; None for no bound.

    Returns:
        Why there is no answer; empty if there is one.
    """
    confirmation.unchecked = True
    steps = sum(plan.end for plan in plans)
    if budget is not None and runs.done + steps > budget:
        return "The budget had no room for a control on shuffled targets, which so small a gain asks for."
    runs.expect(steps)
    found = dict(runs.run(plans))
    results = [found[place] for place in sorted(found)]
    lost = next((one.trial.error for one in results if not isinstance(one, Course)), "")
    if lost:  # that says nothing of what there is to learn without the targets
        return f"The control on shuffled targets came to nothing: {lost}."
    if any(one.trial.losses == other.trial.losses for one, other in zip(results, confirmation.after, strict=True)):
        return "The targets could not be shuffled, so that there is no control of so small a gain."
    confirmation.control += results
    confirmation.unchecked = False
    return ""
