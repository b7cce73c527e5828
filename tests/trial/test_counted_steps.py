"""The optimizer steps that messages speak of are those that were made: the look at the model at the end is none."""

import re

import pytest
import torch
from searched_tasks import task

from evengrad.diagnose import findings_of
from evengrad.report import story_of_record
from evengrad.runlog import read
from evengrad.trial._plan import Plan
from evengrad.trial._training import run_course


def trained(tmp_path=None, **changes):
    made = []

    def optimizer(model):
        sgd = torch.optim.SGD(model.parameters(), lr=changes.get("lr", 1e-3))
        sgd.register_step_post_hook(lambda *_: made.append(1))
        return sgd

    changes = {"steps": 40, "optimizer": optimizer} | {key: one for key, one in changes.items() if key != "lr"}
    sick = task(**changes)
    plan = Plan(task=sick, label="untreated", seed=0, steps=sick.steps, stage="scout", log=tmp_path)
    return run_course(plan, lambda count: None), len(made)


@pytest.mark.parametrize("steps", [40, 41, 64])
def test_what_is_said_of_a_training_counts_the_steps_of_its_optimizer(steps):
    course, made = trained(steps=steps)
    said = [one.message for one in course.findings if re.search(r"\d+ steps", one.message)]
    assert made == steps
    assert said
    assert all(f" {made} steps" in message for message in said), said


def test_a_schedule_that_died_is_counted_in_steps_that_were_made():
    schedule = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 4))  # noqa: E731
    course, made = trained(schedule=schedule, lr=1e-2, steps=60)
    (message,) = [one.message for one in course.findings if one.code == "EG602"]
    assert f"in the last {made - 4} of {made} steps" in message


def test_the_log_of_a_training_tells_as_many_steps(tmp_path):
    course, made = trained(tmp_path / "untreated")
    record = read(tmp_path / "untreated")
    assert [one.message for one in findings_of(record)] == [one.message for one in course.findings]
    assert f" in {made} steps" in story_of_record(record, course.findings, title="").headline
