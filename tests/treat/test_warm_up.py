"""The first rates held down: by how much, in front of which schedules, and what is refused."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from evengrad.nouns import SettingError, Task, TaskError, TreatmentError
from evengrad.treat import WarmUp
from evengrad.treat._warm_up import WarmedSchedule


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


def cosine(optimizer):
    return schedules.CosineAnnealingLR(optimizer, 20)


def stairs(optimizer):
    return schedules.StepLR(optimizer, 6, gamma=0.1)


def lambda_(optimizer):
    return schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def plateau(optimizer):
    return schedules.ReduceLROnPlateau(optimizer, patience=2, factor=0.5)


def rates(task, steps=14, schedule=None):
    """Return the learning rate of each step, as a loop with a scheduler sees it."""
    model = nn.Linear(2, 1)
    optimizer = task.optimizer(model)
    made = task.schedule(optimizer) if task.schedule is not None else None
    seen = []
    for _ in range(steps):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if made is not None:
            made.step(1.0) if isinstance(made, schedules.ReduceLROnPlateau) else made.step()
    return seen


@pytest.mark.parametrize("schedule", [None, cosine, stairs, lambda_, plateau])
def test_the_schedule_goes_on_as_before_times_the_ramp(task, schedule):
    plain = replace(task, optimizer=adam, schedule=schedule)
    treated = pickle.loads(pickle.dumps(WarmUp(steps=8).treat_task(plain).subject)) if schedule is not lambda_ else None
    treated = treated or WarmUp(steps=8).treat_task(plain).subject
    wanted = [rate * min(1.0, (step + 1) / 8) for step, rate in enumerate(rates(plain))]
    assert rates(treated) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("schedule", [None, cosine, stairs])
def test_the_pasted_code_trains_to_the_same_weights(task, schedule):
    plain = replace(task, optimizer=adam, schedule=schedule)
    treated = WarmUp(steps=8).treat_task(plain)
    finals = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = adam(model)
        first = schedule(optimizer) if by_hand and schedule else None
        names = {"torch": torch, "optimizer": optimizer}
        if by_hand:
            exec(compile(treated.code, "pasted", "exec"), names)
        stepped = [first, names.get("warm_up")] if by_hand else [treated.subject.schedule(optimizer)]
        for _ in range(14):
            optimizer.zero_grad()
            model(torch.ones(3, 2)).square().mean().backward()
            optimizer.step()
            for one in stepped:
                if one is not None:
                    one.step()
        finals.append(model.weight.detach())
    torch.testing.assert_close(*finals, rtol=1e-5, atol=1e-7)


def test_a_start_that_is_thrown_away_by_full_steps_is_saved():
    """A quadratic valley that is steep only far from its middle: the first full steps leave it for good."""

    def final(task):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.full((8,), 3.0))
        holder = nn.Module()
        holder.weight = weight
        optimizer = task.optimizer(holder)
        schedule = None if task.schedule is None else task.schedule(optimizer)
        for _ in range(40):
            optimizer.zero_grad()
            (weight.square() / 2 + weight.pow(4) / 4).sum().backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return weight.detach().abs().max().item()

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.3)

    task = Task(
        model=lambda: nn.Linear(1, 1), optimizer=sgd, loss=nn.functional.mse_loss, train=list, validate=lambda m: 0.0,
        steps=40,
    )  # fmt: skip
    assert not final(task) < 10.0  # NaN as well
    assert final(WarmUp().treat_task(task).subject) < 1e-3


@pytest.mark.parametrize(("steps", "task_steps", "wanted"), [(None, 2000, 200), (None, 30, 10), (7, 30, 7)])
def test_it_lasts_a_tenth_of_the_steps_and_at_least_ten(task, steps, task_steps, wanted):
    treated = WarmUp(steps=steps).treat_task(replace(task, steps=task_steps))
    assert f"over the first {wanted} steps, from 1/{wanted} of it" in treated.changes[0]
    assert rates(treated.subject)[0] == pytest.approx(0.5 / wanted)


def one_cycle(optimizer):
    return schedules.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)


def warmed(optimizer):
    return WarmedSchedule(factory=None, steps=4)(optimizer)


def linear(optimizer):
    return schedules.LinearLR(optimizer, 0.1, 1.0, 5)


@pytest.mark.parametrize("schedule", [one_cycle, linear, warmed])
def test_a_schedule_that_warms_up_by_itself_is_refused(task, schedule):
    with pytest.raises(TreatmentError, match="warms up by itself"):
        WarmUp().treat_task(replace(task, optimizer=adam, schedule=schedule))


def test_a_schedule_that_cannot_be_made_is_named(task):
    def broken(_optimizer):
        raise ValueError("no epochs")

    with pytest.raises(TaskError, match=r"Task\.schedule: got ValueError: no epochs"):
        WarmUp().treat_task(replace(task, schedule=broken))


def test_the_state_goes_into_another_schedule(task):
    plain = replace(task, optimizer=adam, schedule=cosine)
    made = WarmUp(steps=8).treat_task(plain).subject
    wanted = rates(made)
    model = nn.Linear(2, 1)
    optimizer = made.optimizer(model)
    schedule = made.schedule(optimizer)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    again = made.optimizer(model)
    resumed = made.schedule(again)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    seen = []
    for _ in range(9):
        seen.append(again.param_groups[0]["lr"])
        again.step()
        resumed.step()
    assert seen == pytest.approx(wanted[5:], rel=1e-6)


def test_a_learning_rate_in_a_tensor_is_held_down(task):
    def tensor(model):
        return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))

    treated = WarmUp(steps=4).treat_task(replace(task, optimizer=tensor, schedule=stairs)).subject
    assert rates(treated, 5) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True])
def test_a_number_of_steps_that_is_none_is_named(steps):
    with pytest.raises(SettingError, match="steps: got"):
        WarmUp(steps=steps)
