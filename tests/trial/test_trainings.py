"""What the budget of a search has room for, and where its run logs go."""

import pytest
from searched_tasks import task

from evengrad.trial._rungs import rungs_of
from evengrad.trial._runs import Runs
from evengrad.trial._terms import Terms
from evengrad.trial._trainings import Trainings


def trainings(*, done=0, **settings):
    runs = Runs(None, lambda: None)
    runs.done = done
    return Trainings(Terms(task=task(steps=16), rungs=rungs_of(16), seeds=3, seed=0, **settings), runs)


@pytest.mark.parametrize("done", [0, 20])
def test_a_proof_is_affordable_to_the_last_step_and_a_training_more_only_with_what_is_chosen_by_it(done):
    proof, choosing, one = 3 * 2 * 16, rungs_of(16).most_steps, 16
    assert trainings(done=done, budget=done + proof).affordable()
    assert not trainings(done=done, budget=done + proof - 1).affordable()
    assert trainings(done=done, budget=done + proof + choosing + one).affordable(extra=1)
    assert not trainings(done=done, budget=done + proof + choosing + one - 1).affordable(extra=1)


def test_without_a_budget_there_is_room_for_everything():
    assert trainings(done=10**9).affordable(extra=100)


def test_a_run_log_never_goes_where_one_is_already(tmp_path):
    logged = trainings(log=tmp_path)
    names = []
    for _ in range(3):
        folder = logged.folder("untreated")
        folder.mkdir()
        names.append(folder.relative_to(tmp_path).as_posix())
    assert names == ["untreated", "untreated-2", "untreated-3"]
    assert trainings().folder("untreated") is None
