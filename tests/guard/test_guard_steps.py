"""The hook seam: what a guarded step does to weights, moments and counters."""

import copy
import logging
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.clip import ByZScore
from evengrad.guard import Guard
from evengrad.nouns import LossError, ModelError, OptimizerError, SettingError, TooManySkipsError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd momentum foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd momentum fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, foreach=False),
    "adam amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True, weight_decay=0.5),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr_decay=0.1),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adafactor": torch.optim.Adafactor,
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def train(model, optimizer, inputs, before_step=lambda: None, factors=None):
    losses = []
    for step, x in enumerate(inputs):
        optimizer.zero_grad()
        loss = model(x).square().sum() * (factors or {}).get(step, 1.0)
        loss.backward()
        before_step()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25])
@pytest.mark.parametrize("when", [0, 1, 4])
def test_a_skipped_step_is_equal_to_the_bit_to_never_having_had_it(make, bad, when):
    model, other = net(), net()
    optimizer, plain = make(model.parameters()), make(other.parameters())
    good = batches(6)
    with Guard(model, optimizer, clip=math.inf) as guard:
        train(model, optimizer, [*good[:when], good[0], *good[when:]], factors={when: bad})
        assert guard.skips == 1
        assert guard.step == 7
    train(other, plain, good)
    assert same(model.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("clip", [math.inf, ByZScore(warmup_steps=1000)])
def test_a_guard_that_clips_nothing_changes_nothing_in_fifty_steps(clip):
    model, other = net(), net()
    optimizer, plain = torch.optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    guard = Guard(model, optimizer, clip=clip)
    losses = train(model, optimizer, batches(50))
    assert losses == train(other, plain, batches(50))
    assert same(model.state_dict(), other.state_dict())
    assert guard.step == 50
    assert guard.skips == 0


def test_the_hook_clips_as_clip_grad_norm_does():
    model, other = net(), net()
    optimizer, plain = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    norms, expected = [], []
    guard = Guard(model, optimizer, clip=0.7)
    for x in batches(8):
        train(model, optimizer, [x])
        norms.append(float(guard.last_norm))
    train(other, plain, batches(8), lambda: expected.append(float(nn.utils.clip_grad_norm_(other.parameters(), 0.7))))
    assert norms == pytest.approx(expected, rel=1e-6)
    assert max(norms) > 0.7
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_default_clips_a_spike_to_near_the_mean():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    guard = Guard(model, optimizer)
    train(model, optimizer, batches(31), factors={30: 1000.0})
    record = guard.record
    assert [reading.scale for reading in record.readings[:25]] == [1.0] * 25
    last = record.readings[-1]
    let_through = last.scale * last.total_norm
    assert let_through < 0.05 * last.total_norm
    assert let_through < 3 * max(reading.total_norm for reading in record.readings[:25])


def test_bad_gradients_are_back_after_the_step_and_good_ones_were_never_touched():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)
    train(model, optimizer, [torch.full((5, 3), math.nan)])
    assert all(torch.isnan(parameter.grad).any() for parameter in model.parameters())
    assert bool(guard.skipped)
    assert guard.skipped.shape == ()
    assert guard.skipped.dtype == torch.bool
    assert math.isnan(guard.last_norm)
    train(model, optimizer, batches(1))
    assert not bool(guard.skipped)


def test_a_step_that_raises_gives_the_gradients_back_at_the_next_one():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)

    def fail(*_):
        raise KeyboardInterrupt("stop")

    breaker = optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        train(model, optimizer, [torch.full((5, 3), math.nan)])
    breaker.remove()
    optimizer.step()
    assert guard.skips == 1
    assert all(torch.isnan(parameter.grad).any() for parameter in model.parameters())


def test_a_step_that_raises_gives_no_stale_gradients_to_a_new_backward():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)

    def fail(*_):
        raise KeyboardInterrupt("stop")

    breaker = optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        train(model, optimizer, [torch.full((5, 3), math.nan)])
    breaker.remove()
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)  # these get no gradient this time
    train(model, optimizer, batches(1))
    assert guard.skips == 0
    assert all(parameter.grad is None for parameter in model[2].parameters())


def test_detaching_gives_held_gradients_back():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)

    def fail(*_):
        raise KeyboardInterrupt("stop")

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        train(model, optimizer, [torch.full((5, 3), math.nan)])
    guard.detach()
    assert all(torch.isnan(parameter.grad).any() for parameter in model.parameters())


def test_a_detached_guard_does_nothing_and_detaching_twice_is_fine():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    with Guard(model, optimizer) as guard:
        train(model, optimizer, batches(2))
    guard.detach()
    train(model, optimizer, batches(2))
    assert guard.step == 2
    assert hooks == (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks))
    assert "detached" in repr(guard)
    with pytest.raises(OptimizerError, match="guard: got a detached one, want an attached one"):
        guard.clip_()


def test_too_many_skips_in_a_row_end_the_run_with_the_names():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, max_consecutive_skips=2)
    bad = torch.full((5, 3), math.nan)
    train(model, optimizer, [bad, bad, *batches(1), bad, bad])
    with pytest.raises(TooManySkipsError, match=r"got 3 skipped steps in a row, the last at step 5: .* 0\.weight, "):
        train(model, optimizer, [bad])
    assert guard.skips == 5
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_log_names_the_parameters_and_is_not_flooded(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, tell=False)
    caplog.set_level(logging.WARNING, logger="evengrad.guard")
    for _ in range(9):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        model[2].bias.grad.fill_(math.nan)
        optimizer.step()
    assert [record.args[1] for record in caplog.records] == [1, 2, 4, 8]
    assert all(": gradient not finite: 2.bias; 2 (Linear): " in record.getMessage() for record in caplog.records)
    assert guard.skips == 9


def test_at_most_five_names_are_said(caplog):
    model = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.step()
    assert guard.skips == 1
    assert "0.weight, 1.weight, 2.weight, 3.weight, 4.weight and 4 more" in caplog.text


def test_a_reading_has_loss_rates_and_norms():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.25), capturable=False, foreach=False)
    guard = Guard(model, optimizer, clip=0.5)
    loss = guard.loss(model(batches(1)[0]).square().sum())
    loss.backward()
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(0.125)
    (reading,) = guard.record.readings
    assert reading.step == 0
    assert reading.loss == pytest.approx(loss.item())
    assert reading.lrs == (0.25,)
    assert reading.grad_norms == pytest.approx(norms, rel=1e-6)
    assert reading.total_norm == pytest.approx(math.hypot(*norms), rel=1e-6)
    assert reading.scale == pytest.approx(0.5 / (reading.total_norm + 1e-6), rel=1e-6)
    optimizer.step()
    assert guard.record.readings[1].loss is None


def test_a_loss_is_returned_unchanged_and_must_be_a_scalar():
    model = net()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loss = model(batches(1)[0]).sum()
    assert guard.loss(loss) is loss
    with pytest.raises(LossError, match=r"loss: got shape \(5, 2\), want a scalar"):
        guard.loss(model(batches(1)[0]))
    for wrong in ("0.5 or so", None):
        with pytest.raises(LossError, match="want a scalar tensor or a number"):
            guard.loss(wrong)


def test_the_window_is_bounded():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    guard = Guard(model, optimizer)
    for _ in range(1050):
        optimizer.step()
    assert [reading.step for reading in guard.record.readings] == [*range(32), *range(50, 1050)]


def test_steps_without_any_gradient_are_not_skipped():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    guard = Guard(model, optimizer)
    optimizer.step()
    assert (guard.step, guard.skips, float(guard.last_norm)) == (1, 0, 0.0)


def test_before_the_first_step_nothing_was_skipped_and_no_norm_is_known():
    model = net()
    guard = Guard(model, torch.optim.Adam(model.parameters()))
    assert not bool(guard.skipped)
    assert math.isnan(guard.last_norm)
    assert "ByZScore(z=2.5" in repr(guard)
    assert "4 parameters" in repr(guard)
    assert "\n" not in repr(guard)


@pytest.mark.parametrize("skip", [False, True])
def test_a_guarded_step_on_a_cpu_runs_no_operation_that_reads_a_value(skip):
    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name().split(".")[0] not in {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"}
            return func(*args, **(kwargs or {}))

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=1e-3)
    train(model, optimizer, batches(1))
    loss = model(torch.full((1, 3), math.nan if skip else 1.0)).sum()
    optimizer.zero_grad()
    loss.backward()
    with NoReads():
        guard.loss(loss)
        optimizer.step()
    assert guard.skips == int(skip)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ModelError, match="model: got ReLU without parameters, want a model with parameters"):
        Guard(nn.ReLU(), torch.optim.SGD(net().parameters(), lr=0.1))


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ModelError, match=r"model: got list, want a torch\.nn\.Module"):
        Guard(list(net().parameters()), torch.optim.SGD(net().parameters(), lr=0.1))


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(OptimizerError, match="got SGD with none of the parameters of Sequential"):
        Guard(net(), torch.optim.SGD(net().parameters(), lr=0.1))


def test_something_that_is_no_optimizer_is_refused():
    with pytest.raises(OptimizerError, match=r"optimizer: got object, want a torch\.optim\.Optimizer"):
        Guard(net(), object())


def test_a_second_guard_on_one_optimizer_is_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = Guard(model, optimizer)
    with pytest.raises(OptimizerError, match="got one with a guard, want one without"):
        Guard(model, optimizer)
    first.detach()
    Guard(model, optimizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": -1.0}, "max_norm: got -1.0"),
        ({"clip": "x"}, "clip: got 'x'"),
        ({"max_consecutive_skips": -1}, "max_consecutive_skips: got -1"),
        ({"max_consecutive_skips": 1.5}, r"max_consecutive_skips: got 1\.5"),
        ({"scaler": 1.0}, "scaler: got float"),
    ],
)
def test_a_bad_setting_is_refused_and_leaves_no_hook(settings, message):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SettingError, match=message):
        Guard(model, optimizer, **settings)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_guarded_optimizer_can_be_copied_without_its_guard():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    Guard(model, optimizer)
    train(model, optimizer, batches(1))
    twin = copy.deepcopy(optimizer)
    assert not twin._optimizer_step_pre_hooks
