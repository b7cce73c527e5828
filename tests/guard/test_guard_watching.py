"""A guard that only watches changes nothing, whatever comes, and writes down what there was."""

import copy
import math

import pytest
import torch
from torch import nn

from evengrad.guard import Guard, Rollback
from evengrad.nouns import SettingError

KINDS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def batches(bad=()):
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(6, 4, generator=generator) for _ in range(12)]
    for place in bad:
        found[place] = torch.full((6, 4), math.nan)
    return found


def state_of(model, optimizer):
    """Copy all that a step leaves behind, as text in which NaN equals itself."""
    parts = [*model.state_dict().values(), *(one.grad for one in model.parameters())]
    parts += [value for state in optimizer.state.values() for value in state.values()]
    return [repr(part.tolist()) if isinstance(part, torch.Tensor) else repr(part) for part in parts]


def run(kind, data, guarded, seam="hook", scaled=False):
    model = net()
    optimizer = KINDS[kind](model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**120)  # overflows at first
    guard = Guard(model, optimizer, clip=False, scaler=scaler, sample_every_steps=1) if guarded else None
    states = []
    for x in data:
        optimizer.zero_grad()
        loss = model(x).square().mean() * 1e6
        scaler.scale(loss).backward()
        if seam == "call" and guard is not None:
            guard.clip_()
        scaler.step(optimizer)
        scaler.update()
        states.append(state_of(model, optimizer))
    return states, guard


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seam", ["hook", "call"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [(), (4,), range(3, 12)], ids=["good", "one bad", "bad for good"])
def test_a_watched_run_is_equal_to_the_bit_also_where_all_is_nan(kind, seam, scaled, bad):
    data = batches(bad)
    plain, _ = run(kind, data, guarded=False, scaled=scaled)
    watched, guard = run(kind, data, guarded=True, seam=seam, scaled=scaled)
    assert watched == plain
    assert guard.clips == 0


def test_norms_are_those_of_the_gradients_and_no_step_is_called_skipped():
    model = net()
    optimizer = KINDS["Adam"](model.parameters())
    expected = []
    with Guard(model, optimizer, clip=False, max_consecutive_skips=0, tell=False) as guard:
        for x in batches((5,)):
            optimizer.zero_grad()
            (model(x).square().mean() * 1e6).backward()
            expected.append(float(torch.cat([one.grad.double().flatten() for one in model.parameters()]).norm()))
            optimizer.step()
    readings = guard.record.readings
    assert [reading.total_norm for reading in readings][:5] == pytest.approx(expected[:5], rel=1e-5)
    assert all(math.isnan(reading.total_norm) for reading in readings[5:])
    assert guard.skips == 0
    assert not any(reading.skipped or reading.scale != 1 for reading in readings)


@pytest.mark.parametrize("kind", ["SGD", "fused AdamW"])
@pytest.mark.parametrize("seam", ["hook", "call"])
def test_under_a_scaler_norms_are_unscaled_though_nothing_is_unscaled_before_its_time(kind, seam):
    def norms(scaled):
        model = net()
        optimizer = KINDS[kind](model.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        guard = Guard(model, optimizer, clip=False, scaler=scaler, tell=False)
        for x in batches()[:3]:
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            if seam == "call":
                before = [one.grad.clone() for one in model.parameters()]
                guard.clip_()
                assert all(torch.equal(a, b.grad) for a, b in zip(before, model.parameters(), strict=True))
            scaler.step(optimizer)
            scaler.update()
        return [reading.grad_norms for reading in guard.record.readings]

    for one, other in zip(norms(True), norms(False), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_several_optimizers_under_a_scaler_are_measured_unscaled_and_left_alone(fused, known):
    def run(scaled, guarded):
        model = net()
        optimizers = [torch.optim.Adam(part.parameters(), lr=0.01, fused=fused) for part in (model[:2], model[2:])]
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        guard = Guard(model, optimizers, clip=False, scaler=scaler if known else None, tell=False) if guarded else None
        for x in batches()[:4]:
            model.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        return [one.tolist() for one in model.parameters()], guard

    weights, guard = run(scaled=True, guarded=True)
    assert weights == run(scaled=True, guarded=False)[0]
    plain = run(scaled=False, guarded=True)[1]
    for one, other in zip(guard.record.readings, plain.record.readings, strict=True):
        assert one.grad_norms == pytest.approx(other.grad_norms, rel=1e-4)


def test_a_step_that_a_scaler_leaves_out_within_a_fused_optimizer_is_written_down():
    _, guard = run("fused AdamW", batches()[:3], guarded=True, scaled=True)
    assert [reading.skipped for reading in guard.record.readings] == [True, True, True]


def test_many_bad_steps_raise_nothing():
    _, guard = run("SGD", [torch.full((6, 4), math.nan)] * 130, guarded=True)
    assert (guard.step, guard.skips) == (130, 0)


def test_gradients_laid_out_otherwise_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    guard = Guard(model, optimizer, clip=False)
    model.weight.grad = torch.ones(4, 3).t()
    given = model.weight.grad
    guard.clip_()
    assert model.weight.grad is given


def test_it_says_that_it_only_watches_and_copies_what_it_remembers():
    model = net()
    guard = Guard(model, KINDS["SGD"](model.parameters()), clip=False)
    assert repr(guard) == "Guard(watching only, 6 parameters, changes nothing; step=0, skips=0, clips=0)"
    guard.load_state_dict(copy.deepcopy(guard.state_dict()))
    guard.detach()


@pytest.mark.parametrize("settings", [{"apply": "conditional"}, {"rollback": Rollback()}])
def test_what_would_change_a_run_does_not_go_with_it(settings):
    model = net()
    with pytest.raises(SettingError, match="want None with clip=False: nothing is ever changed"):
        Guard(model, KINDS["SGD"](model.parameters()), clip=False, **settings)
