"""Events, the scheduler's gate, running statistics, and going back to good weights."""

import copy
import io
import itertools
import logging
import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByPolyakStep, BySigmaWindow, ByZScore, SkipNonFinite
from evengrad.guard import Guard, Rollback
from evengrad.nouns import SettingError, TooManySkipsError


def net(seed=0, *, norm=False):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(4)] if norm else []
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def train(model, optimizer, guard, inputs, factors=None, after=lambda: None):
    for step, x in enumerate(inputs):
        optimizer.zero_grad()
        guard.loss(model(x).square().sum() * (factors or {}).get(step, 1.0)).backward()
        optimizer.step()
        after()


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_every_clipped_and_skipped_step_is_told_with_its_numbers(way):
    model, events = net(), []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, clip=4.0, apply=way, on_event=events.append)
    train(model, optimizer, guard, batches(6), {2: math.nan, 4: 100.0})
    kinds = {event.step: event.kind for event in events}
    readings = guard.record.readings
    clipped = {reading.step: "clipped" for reading in readings if reading.scale < 1}
    assert kinds == {2: "skipped", **clipped}
    assert kinds[4] == "clipped"
    assert (guard.skips, guard.clips) == (1, len(clipped))
    bad = events[[event.step for event in events].index(2)]
    assert bad.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert "gradient not finite: 0.weight" in bad.reason
    big = events[[event.step for event in events].index(4)]
    assert big.norm == pytest.approx(readings[4].total_norm)
    assert big.scale == pytest.approx(4.0 / big.norm, rel=1e-5)
    assert f"gradient norm {big.norm:.4g}" in big.reason


class Root(nn.Module):
    """Takes the root of zero: its gradient is infinite there, and infinity times zero is NaN."""

    def forward(self, x):
        return (x * 0.0).sqrt()


def test_the_second_skip_in_a_row_names_the_module_that_makes_the_bad_value(caplog):
    model = nn.Sequential(nn.Linear(3, 4), Root(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, sample_every_steps=None, tell=False)
    train(model, optimizer, guard, batches(1))
    assert any(module._forward_hooks for module in model.modules())  # watched for one step
    train(model, optimizer, guard, batches(7))
    first, second, fourth, eighth = (record.getMessage() for record in caplog.records)
    assert "gradient not finite: 0.weight, 0.bias" in first
    assert all("1 (Root)" in message for message in (second, fourth, eighth))
    assert not any(module._forward_hooks for module in model.modules())  # it is known now
    guard.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_that_are_not_finite_themselves_are_named_at_once(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    train(model, optimizer, guard, batches(1))
    assert "not finite themselves: 2.weight" in caplog.text


def test_no_module_is_watched_while_all_is_well():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, sample_every_steps=None)
    train(model, optimizer, guard, batches(3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_step_that_the_policy_leaves_out_is_not_called_not_finite():
    model, events = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, clip=BySigmaWindow(), on_event=events.append)
    train(model, optimizer, guard, batches(80), {79: 1e6})
    assert events[-1].step == 79
    assert events[-1].parameters == ()
    assert events[-1].reason.startswith("left out by the policy: gradient norm ")


def test_an_error_of_the_users_own_action_reaches_the_user():
    def act(event):
        raise RuntimeError(f"stop at {event.step}")

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=math.inf, on_event=act)
    with pytest.raises(RuntimeError, match="stop at 1"):
        train(model, optimizer, guard, batches(3), {1: math.nan})


@pytest.mark.parametrize("way", ["conditional", "folded"])
def test_a_gated_schedule_stands_still_on_skipped_steps(way):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    model, other = net(), net()
    optimizer, plain = (torch.optim.AdamW(one.parameters(), fused=True) for one in (model, other))
    guard = Guard(model, optimizer, clip=math.inf, apply=way)
    gate, free = guard.gate(schedule(optimizer)), schedule(plain)
    good = batches(6)
    train(model, optimizer, guard, [*good[:2], good[0], *good[2:]], {2: math.nan}, gate.step)
    for x in good:
        plain.zero_grad()
        other(x).square().sum().backward()
        plain.step()
        free.step()
    assert gate.get_last_lr() == free.get_last_lr()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_gate_leaves_the_schedule_itself_alone():
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1.0))
    gate = guard.gate(scheduler)
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    gate.load_state_dict(torch.load(file, weights_only=True))
    assert gate.step_size == 1
    assert "step" not in vars(scheduler)
    assert copy.copy(gate).step_size == 1
    with pytest.raises(AttributeError, match="no_such"):
        _ = gate.no_such
    with pytest.raises(SettingError, match=r"scheduler: got int, want an object with a step\(\)"):
        guard.gate(3)


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_a_bad_batch_does_not_spoil_running_statistics(way):
    model = net(norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, apply=way)
    train(model, optimizer, guard, batches(3))
    before = copy.deepcopy(dict(model.named_buffers()))
    train(model, optimizer, guard, [batches(1)[0] * math.nan])
    assert guard.skips == 1
    for name, buffer in model.named_buffers():
        assert torch.isfinite(buffer).all(), name
        assert torch.equal(buffer, before[name]), name
    model.eval()
    assert torch.isfinite(model(batches(1)[0])).all()


def test_running_statistics_are_spoiled_without_a_guard():
    model = net(norm=True)
    model(batches(1)[0] * math.nan)
    assert torch.isnan(model[1].running_mean).all()


class Poisoned(nn.Module):
    """Its weights are made bad by the run itself at one step, and every step after that is not finite."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def test_a_run_that_only_skips_goes_back_to_good_weights_with_a_lower_rate(caplog):
    model, events = Poisoned(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    rollback = Rollback(every_steps=5, after_skips=3, lr_factor=0.5)
    guard = Guard(model, optimizer, rollback=rollback, on_event=events.append, clip=math.inf)
    seen = []
    for step, x in enumerate(batches(40)):
        if step == 13:
            with torch.no_grad():
                model.layer.weight[0, 0] = math.nan
        if step in (1, 6):
            seen.append(copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"])))
        train(model, optimizer, guard, [x])
        if events and events[-1].kind == "rolled back" and len(seen) < 3:
            seen.append(copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"])))
            assert step == 15
    assert [event.kind for event in events] == ["skipped"] * 3 + ["rolled back"]
    assert "back to the weights of step 5, learning rate times 0.5" in events[-1].reason
    assert torch.equal(seen[2][0]["layer.weight"], seen[1][0]["layer.weight"])
    assert torch.equal(seen[2][1][0]["exp_avg"], seen[1][1][0]["exp_avg"])
    assert seen[2][1][0]["step"] == seen[1][1][0]["step"] == 6
    assert guard.skips == 3
    lrs = [reading.lrs[0] for reading in guard.record.readings]
    assert lrs[:16] == [0.1] * 16
    assert lrs[16:] == [0.05] * 24
    assert optimizer.param_groups[0]["lr"] == 0.1  # the schedule's own value
    assert "3 skipped steps in a row: back to the weights of step 5" in caplog.text


def test_going_back_ends_after_so_many_times_and_then_skips_end_the_run():
    model = Poisoned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rollback = Rollback(every_steps=1, after_skips=2, most=2)
    guard = Guard(model, optimizer, rollback=rollback, max_consecutive_skips=4)
    train(model, optimizer, guard, batches(3))
    with pytest.raises(TooManySkipsError, match="got 5 skipped steps in a row, the last at step 11"):
        train(model, optimizer, guard, [x * math.nan for x in batches(20)])
    assert guard.state_dict()["rollbacks"] == 2
    assert guard.state_dict()["lr_factor"] == 0.25


def test_a_loss_that_runs_away_makes_it_go_back():
    model, events = Poisoned(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rollback = Rollback(every_steps=10, loss_factor=3.0)
    guard = Guard(model, optimizer, clip=math.inf, rollback=rollback, on_event=events.append)
    train(model, optimizer, guard, batches(30))
    good = model.layer.weight.detach().clone()
    with torch.no_grad():
        model.layer.weight.mul_(50.0)
    for x in batches(20):
        train(model, optimizer, guard, [x])
        if events:
            break
    assert events[-1].kind == "rolled back"
    assert "times that of step" in events[-1].reason
    assert float((model.layer.weight.detach() - good).norm()) < 0.5 * float(good.norm()) + 0.5


def test_a_rolled_back_run_goes_on_from_a_checkpoint_with_its_lower_rate():
    model = Poisoned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, rollback=Rollback(every_steps=1, after_skips=1))
    train(model, optimizer, guard, [*batches(2), batches(1)[0] * math.nan])
    saved = guard.state_dict()
    guard.detach()
    other = Guard(model, optimizer, rollback=Rollback())
    other.load_state_dict(saved)
    train(model, optimizer, other, batches(1))
    assert other.record.readings[-1].lrs == (0.05,)


def test_nothing_goes_back_by_default():
    model = Poisoned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, max_consecutive_skips=5)
    with pytest.raises(TooManySkipsError, match="got 6 skipped steps in a row"):
        train(model, optimizer, guard, [x * math.nan for x in batches(20)])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"every_steps": 0}, "every_steps: got 0, want a whole number from 1"),
        ({"after_skips": 1.5}, "after_skips: got 1.5, want a whole number from 1"),
        ({"most": True}, "most: got True, want a whole number from 1"),
        ({"lr_factor": 0.0}, r"lr_factor: got 0.0, want a number in \(0, 1\]"),
        ({"lr_factor": 2.0}, r"lr_factor: got 2.0, want a number in \(0, 1\]"),
        ({"lr_factor": math.nan}, r"lr_factor: got nan, want a number in \(0, 1\]"),
        ({"loss_factor": 1.0}, "loss_factor: got 1.0, want a number above 1, or None"),
        ({"loss_factor": math.nan}, "loss_factor: got nan, want a number above 1, or None"),
    ],
)
def test_rollback_settings_out_of_range_are_refused(settings, what):
    with pytest.raises(SettingError, match=what):
        Rollback(**settings)


def test_settings_of_the_wrong_kind_are_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SettingError, match="rollback: got bool, want a Rollback or None"):
        Guard(model, optimizer, rollback=True)
    with pytest.raises(SettingError, match="on_event: got str, want a function of one Event, or None"):
        Guard(model, optimizer, on_event="print")


def test_a_log_of_events_is_silent_on_a_healthy_run(caplog):
    caplog.set_level(logging.DEBUG)
    model, events = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, on_event=events.append)
    train(model, optimizer, guard, batches(30))
    assert (guard.skips, caplog.text) == (0, "")
    assert all(event.kind == "clipped" for event in events)


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_a_learning_rate_that_is_far_too_high_is_bounded_by_the_loss_and_only_with_sgd(way):
    def reached(make, clip):
        model = net()
        optimizer = make(model.parameters())
        guard = Guard(model, optimizer, clip=clip, apply=way)
        generator = torch.Generator().manual_seed(1)
        for _ in range(60):
            x = torch.randn(16, 3, generator=generator)
            optimizer.zero_grad()
            loss = guard.loss((model(x) - 10 * x[:, :2]).square().mean())
            loss.backward()
            optimizer.step()
        return float(loss.detach()), guard

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=5.0, fused=True)

    wild, _ = reached(sgd, SkipNonFinite())
    held, guard = reached(sgd, ByPolyakStep())
    assert not wild < 1e3
    assert held < 100
    assert guard.clips > 30
    _, other = reached(lambda p: torch.optim.AdamW(p, lr=5.0, fused=True), ByPolyakStep())
    assert other.clips == 0


def test_the_default_asks_for_the_loss_with_sgd_only():
    model = net()
    for make, asks in ((torch.optim.SGD, True), (torch.optim.AdamW, False), (torch.optim.RMSprop, False)):
        guard = Guard(model, make(model.parameters(), lr=0.01))
        assert ("ByPolyakStep" in repr(guard)) == asks
        guard.detach()


def test_without_the_loss_the_default_with_sgd_is_that_of_other_optimizers():
    results = []
    for clip in (None, ByZScore()):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        guard = Guard(model, optimizer, clip=clip)
        for x in batches(20):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        results.append((torch.cat([p.detach().flatten() for p in model.parameters()]), guard.clips))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_the_error_that_ends_a_run_names_the_module():
    model = nn.Sequential(nn.Linear(3, 4), Root(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, max_consecutive_skips=4)
    with pytest.raises(TooManySkipsError, match=r"5 skipped steps in a row, .*gradient not finite: .*; 1 \(Root\)"):
        train(model, optimizer, guard, batches(9))


def test_a_run_that_has_gone_back_gets_ten_steps_before_its_loss_is_judged_again():
    model, events = Poisoned(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    rollback = Rollback(every_steps=5, loss_factor=2.0)
    guard = Guard(model, optimizer, clip=math.inf, rollback=rollback, on_event=events.append)
    train(model, optimizer, guard, batches(50), dict.fromkeys(range(20, 50), 1e3))
    steps = [event.step for event in events]
    assert len(steps) >= 2
    assert all(after - before >= 10 for before, after in itertools.pairwise(steps))
