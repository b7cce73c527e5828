"""Loops as people write them: what the guard must not undo, miss, or decide differently from step to step."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from evengrad.clip import ByGlobalNorm, BySigmaWindow, SkipNonFinite, transforms
from evengrad.clip.transforms import AbstractTransform
from evengrad.guard import Guard, Rollback
from evengrad.nouns import LossError, SettingError


def net(*, norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), nn.Linear(8, 2))


def data(number, *, bad=False):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
    if bad:
        x[0, 0] = math.nan
    return x


def backward(model, number, *, bad=False, scaler=None):
    loss = model(data(number, bad=bad)).square().sum()
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


class Clearing(torch.optim.AdamW):
    """Clears the gradients at the end of its own step."""

    def step(self, closure=None):
        result = super().step(closure)
        self.zero_grad()
        return result


@pytest.mark.parametrize("way", ["conditional", "foreach"])
@pytest.mark.parametrize("how", ["hook", "subclass"])
def test_gradients_that_the_step_itself_clears_stay_cleared_after_a_skip(way, how):
    model = net()
    optimizer = (Clearing if how == "subclass" else torch.optim.AdamW)(model.parameters())
    if how == "hook":
        optimizer.register_step_post_hook(lambda one, args, kwargs: one.zero_grad())
    guard = Guard(model, optimizer, apply=way)
    for number in range(8):
        backward(model, number, bad=number == 2)
        optimizer.step()
    assert guard.skips == 1
    assert "zero_grad" not in vars(optimizer)


def test_a_gate_stands_still_where_a_scaler_leaves_the_step_out():
    for call in (True, False):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        guard = Guard(model, optimizer, scaler=scaler)
        gate = guard.gate(StepLR(optimizer, 1, 0.5))
        backward(model, 0, bad=True, scaler=scaler)
        if call:
            guard.clip_()
            assert bool(guard.skipped)
        scaler.step(optimizer)
        scaler.update()
        gate.step()
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_gate_stands_still_where_the_loop_leaves_the_step_out():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    gate = guard.gate(StepLR(optimizer, 1, 0.5))
    for number, bad in enumerate([False, True, False]):
        optimizer.zero_grad()
        backward(model, number, bad=bad)
        if guard.clip_().isfinite():
            optimizer.step()
        gate.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_gate_knows_of_a_skip_before_every_optimizer_has_stepped(way):
    model = net()
    first, second = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2]))
    guard = Guard(model, [first, second], apply=way)
    gate = guard.gate(StepLR(first, 1, 0.5))
    for number, bad in enumerate([False, True]):
        model.zero_grad()
        backward(model, number, bad=bad)
        first.step()  # the second steps every third time
        gate.step()
    assert first.param_groups[0]["lr"] == 0.05
    guard.detach()


def test_several_unfused_optimizers_under_a_scaler_that_the_guard_does_not_know_are_refused():
    model = net()
    first, second = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2]))
    guard = Guard(model, [first, second], clip=1e3)
    scaler = torch.amp.GradScaler("cpu")
    backward(model, 0, scaler=scaler)
    with pytest.raises(SettingError, match="scaler: got None, with several optimizers under one, want the GradScaler"):
        scaler.step(first)
    guard.detach()


def test_running_statistics_that_were_loaded_survive_a_first_step_that_is_skipped():
    source = net(norm=True)
    for number in range(20):
        source(data(number))
    model = net(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    model.load_state_dict(source.state_dict())
    backward(model, 0, bad=True)
    optimizer.step()
    assert guard.skips == 1
    assert torch.equal(model[1].running_mean, source[1].running_mean)
    assert int(model[1].num_batches_tracked) == 20
    guard.detach()
    assert not model._load_state_dict_post_hooks


def test_running_statistics_of_a_layer_with_frozen_weights_are_kept_too():
    model = net(norm=True)
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Guard(model, optimizer)
    backward(model, 0, bad=True)
    optimizer.step()
    assert torch.isfinite(model[1].running_mean).all()


def test_running_statistics_spoilt_in_a_step_that_a_scaler_left_out_are_never_remembered():
    model = net(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    guard = Guard(model, optimizer, scaler=scaler)
    for number in range(4):
        optimizer.zero_grad()
        backward(model, number, bad=number == 1, scaler=scaler)  # its step is not called, so the guard cannot know
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        model[2 + 1].weight.fill_(math.inf)
    optimizer.zero_grad()
    backward(model, 9)
    optimizer.step()
    assert guard.skips == 1
    assert torch.isfinite(model[1].running_mean).all()


@pytest.mark.parametrize("clip", [None, [SkipNonFinite(), transforms.Centralize()]], ids=["policy", "transform"])
def test_a_learning_rate_set_between_clip_and_step_stays(clip):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=clip, rollback=Rollback())
    backward(model, 0)
    guard.clip_()
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.02


@final
@dataclass(frozen=True)
class Slower(AbstractTransform):
    """Halves the learning rate of every step."""

    needs_host: ClassVar[bool] = True

    def init(self, targets):
        return {}

    def before_(self, targets, memory):
        for group in {id(target.group): target.group for target in targets}.values():
            group["lr"] = group["lr"] * 0.5
        return memory

    def after_(self, targets, memory):
        return memory


def test_a_learning_rate_that_a_transform_has_changed_is_put_back_unless_another_was_set_since():
    model, seen = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda one, args, kwargs: seen.append(one.param_groups[0]["lr"]))
    guard = Guard(model, optimizer, clip=[SkipNonFinite(), Slower()])
    for value in (None, 0.02):
        optimizer.zero_grad()
        backward(model, 0)
        guard.clip_()
        if value is not None:
            optimizer.param_groups[0]["lr"] = value
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [0.05, 0.1, 0.02, 0.02]


def test_a_schedule_that_a_hook_drives_goes_on_under_a_rollback():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, 0.5)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    Guard(model, optimizer, rollback=Rollback())
    for number in range(4):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.parametrize("evaluation", range(1, 9))
def test_a_line_search_meets_what_is_not_finite_as_without_a_guard(evaluation):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=8, line_search_fn="strong_wolfe")
    guard = Guard(model, optimizer, clip=math.inf)
    count = 0

    def closure():
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = model(data(0, bad=count == evaluation)).square().sum()
        loss.backward()
        guard.clip_()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_of_any_scalar_shape_and_dtype_is_taken(dtype, shape):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    guard.loss(torch.full(shape, 1.5, dtype=dtype))
    backward(model, 0)
    optimizer.step()
    assert guard.record.readings[0].loss == 1.5
    with pytest.raises(LossError, match="loss: got a complex number, want a real one"):
        guard.loss(torch.tensor(1.0 + 2.0j))


@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_bad_clip_that_no_step_follows_counts_alike_in_every_way(way):
    model = net(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, apply=way)
    for number in range(5):
        optimizer.zero_grad()
        backward(model, number, bad=number == 2)
        if guard.clip_().isfinite():
            optimizer.step()
    assert (guard.step, guard.skips) == (5, 1)
    assert torch.isfinite(model[1].running_mean).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_fault_under_a_scaler_is_no_search_for_a_scale(fused, way, caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = Guard(model, optimizer, scaler=scaler, apply=way)
    for number in range(4):
        optimizer.zero_grad()
        loss = guard.loss(model(data(number, bad=True)).square().sum())
        scaler.scale(loss).backward()
        guard.clip_()
        scaler.step(optimizer)
        scaler.update()
    guard.detach()
    assert guard.skips == 4
    assert "gradient not finite: 0.weight" in caplog.text
    assert "looking for a smaller one" not in caplog.text
    assert guard.findings() != ()


@pytest.mark.parametrize("before", [ByGlobalNorm(1e9, norm_type=math.inf), transforms.ByValue(1e9)])
@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_policy_in_second_place_remembers_what_it_has_left_out(before, way):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    guard = Guard(model, optimizer, clip=[before, BySigmaWindow(window=8)], apply=way)
    for number in range(60):
        optimizer.zero_grad()
        (model(data(number % 5)).square().sum() * (50.0 if number >= 20 else 1.0)).backward()
        optimizer.step()
    assert 1 <= guard.skips <= 5


class Averaging(nn.Module):
    """Assigns its buffer anew in every forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
        self.register_buffer("ema", torch.zeros(2))

    def forward(self, x):
        out = self.layer(x)
        self.ema = 0.9 * self.ema + 0.1 * out.detach().mean(0)
        return out


def test_going_back_restores_buffers_that_were_assigned_anew_and_any_optimizer_memory():
    model = Averaging()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.state["steps of all"] = 1
    guard = Guard(model, optimizer, rollback=Rollback(every_steps=1, after_skips=2))
    for number in range(6):
        optimizer.zero_grad()
        backward(model, number, bad=number >= 4)
        optimizer.step()
    assert guard.skips == 2
    assert torch.isfinite(model.ema).all()
    assert optimizer.state["steps of all"] == 1


def test_a_loaded_run_never_goes_back_to_the_one_before_and_keeps_its_lower_rate():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, rollback=Rollback(every_steps=1, after_skips=1))
    for number in range(4):
        optimizer.zero_grad()
        backward(model, number, bad=number == 3)
        optimizer.step()
    saved = copy.deepcopy(guard.state_dict())
    assert saved["lr_factor"] == 0.5
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    guard.load_state_dict(saved)
    optimizer.zero_grad()
    backward(model, 9, bad=True)
    optimizer.step()
    assert torch.equal(model[0].weight, torch.full((8, 4), 7.0))
    guard.detach()
    plain = Guard(model, optimizer)
    plain.load_state_dict(saved)
    optimizer.zero_grad()
    backward(model, 1)
    optimizer.step()
    assert plain.record.readings[-1].lrs == (0.05,)


def test_gradients_of_weights_that_were_given_up_are_not_applied_to_those_that_came_back():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, rollback=Rollback(every_steps=1, after_skips=1))
    backward(model, 0)
    optimizer.step()
    good = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    optimizer.zero_grad()
    backward(model, 1, bad=True)
    guard.clip_()  # and no step
    optimizer.zero_grad()
    backward(model, 2)
    guard.clip_()
    optimizer.step()
    assert torch.equal(model[0].weight.detach(), good)


def test_a_rollback_is_decided_on_the_host_at_the_same_step_in_every_process():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(SettingError, match="apply: got 'folded' with a rollback, want None or 'conditional'"):
        Guard(model, optimizer, apply="folded", rollback=Rollback())
    with pytest.raises(SettingError, match="max_consecutive_skips: got 2, below the rollback's after_skips=3"):
        Guard(model, optimizer, max_consecutive_skips=2, rollback=Rollback())


def test_a_norm_that_float32_cannot_hold_is_infinite_and_no_error():
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=math.inf)
    (model(data(0).double()).sum() * 1e60).backward()
    optimizer.step()
    assert math.isinf(guard.last_norm)
