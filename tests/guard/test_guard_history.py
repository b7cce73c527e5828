"""What the guard remembers of a long run, and what it says of a loop that never steps."""

import pytest
import torch
from torch import nn

from evengrad.guard import Guard


def trained(model, steps, *, lr=0.01, **settings):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    guard = Guard(model, optimizer, **settings)
    for step in range(steps):
        x = torch.randn(32, model[0].in_features, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        guard.loss(nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())).backward()
        optimizer.step()
    return guard


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def test_the_first_32_steps_are_kept_for_good_before_the_window(monkeypatch):
    monkeypatch.setattr("evengrad.guard._history.WINDOW_STEPS", 20)
    readings = trained(small(), 80, tell=False).record.readings
    assert [reading.step for reading in readings] == [*range(32), *range(60, 80)]
    assert [reading.step for reading in readings if reading.weights][:8] == [*range(8)]
    assert readings[0].ends is not None


@pytest.mark.parametrize("steps", [31, 32, 33, 52, 53])
def test_no_step_is_there_twice_or_missing_before_the_window_is_full(steps, monkeypatch):
    monkeypatch.setattr("evengrad.guard._history.WINDOW_STEPS", 20)
    found = [reading.step for reading in trained(small(), steps, tell=False).record.readings]
    assert found == ([*range(steps)] if steps <= 52 else [*range(32), *range(steps - 20, steps)])


def test_the_rules_are_silent_about_a_healthy_run_with_a_gap(monkeypatch):
    monkeypatch.setattr("evengrad.guard._history.WINDOW_STEPS", 20)
    assert trained(small(), 200, tell=False).findings() == ()


def never_stepped(losses, caplog):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer) as guard:
        for _ in range(losses):
            guard.loss(model(torch.ones(2, 8)).sum()).backward()
    return [record.getMessage() for record in caplog.records]


def test_a_loop_that_hands_over_losses_and_never_steps_is_told_when_the_guard_goes(caplog):
    assert never_stepped(20, caplog) == [
        "20 losses were handed over, and no step of SGD was seen: is another optimizer stepping, or is step() missing?"
    ]


def test_a_loop_that_ends_after_a_few_losses_is_not(caplog):
    assert never_stepped(19, caplog) == []


def test_losses_of_an_accumulation_are_not(caplog):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer) as guard:
        for _ in range(40):
            guard.loss(model(torch.ones(2, 8)).sum()).backward()
        optimizer.step()
    assert not any("handed over" in record.getMessage() for record in caplog.records)
