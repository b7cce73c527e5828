"""The drills: a bad step, and gradients of zero, with every policy and transform in every way of applying decisions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from evengrad import clip
from evengrad.clip import transforms
from evengrad.guard import Guard

POLICIES = {
    "ByGlobalNorm": lambda: clip.ByGlobalNorm(0.5),
    "ByGlobalNorm p=1": lambda: clip.ByGlobalNorm(1.0, norm_type=1.0),
    "ByGlobalNorm p=inf": lambda: clip.ByGlobalNorm(0.1, norm_type=math.inf),
    "ByTensorNorm": lambda: clip.ByTensorNorm(0.2),
    "ByBlockRms": lambda: clip.ByBlockRms(0.1),
    "ByPercentile": lambda: clip.ByPercentile(50.0),
    "ByZScore": clip.ByZScore,
    "ZClip": lambda: clip.ZClip(warmup_steps=3),
    "ByMovingAverage": lambda: clip.ByMovingAverage(warmup_steps=3),
    "ByPolyakStep": clip.ByPolyakStep,
    "BySigmaWindow": clip.BySigmaWindow,
    "BySmoothNorm": lambda: clip.BySmoothNorm(0.5),
    "NormalizedGradient": clip.NormalizedGradient,
    "ByWeightNorm": clip.ByWeightNorm,
    "SkipNonFinite": clip.SkipNonFinite,
    "Chain": lambda: clip.Chain(clip.ByTensorNorm(0.2), clip.ByGlobalNorm(0.3)),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
}
UNFUSED = {"rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9)}
WAYS = (None, "conditional", "foreach", "folded")
BAD = {"nan": math.nan, "inf": math.inf, "overflow": 1e25}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 3, generator=generator) for _ in range(count)]


def ran(policy, make, way, inputs, factors=None, *, norm=True):
    model = net() if norm else nn.Sequential(*(layer for layer in net() if not isinstance(layer, nn.BatchNorm1d)))
    optimizer = make(model.parameters())
    with Guard(model, optimizer, clip=policy, apply=way, sample_every_steps=None) as guard:
        for step, x in enumerate(inputs):
            optimizer.zero_grad()
            loss = guard.loss(model(x).square().sum() * (factors or {}).get(step, 1.0))
            loss.backward()
            optimizer.step()
    return model, optimizer, guard


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_policy_is_drilled():
    assert {type(make()) for make in POLICIES.values()} == {*clip.ALL}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("when", [0, 2, 9])
def test_a_bad_step_leaves_no_trace(policy, way, bad, when):
    good = batches(12)
    for name, make in OPTIMIZERS.items() if bad == "nan" else [("adamw", OPTIMIZERS["adamw"])]:
        with_it = ran(POLICIES[policy](), make, way, [*good[:when], good[0], *good[when:]], {when: BAD[bad]})
        without = ran(POLICIES[policy](), make, way, good)
        assert with_it[2].skips == without[2].skips + 1, name
        assert same(with_it[0].state_dict(), without[0].state_dict()), name
        assert same(with_it[1].state_dict(), without[1].state_dict()), name
        assert same(with_it[2].state_dict()["parts"], without[2].state_dict()["parts"]), name


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_a_bad_step_leaves_no_trace_in_an_optimizer_that_takes_no_flags(policy, way):
    good = batches(8)
    for make in UNFUSED.values():
        with_it = ran(POLICIES[policy](), make, way, [*good[:4], good[0], *good[4:]], {4: math.nan})
        without = ran(POLICIES[policy](), make, way, good)
        assert same(with_it[0].state_dict(), without[0].state_dict())
        assert same(with_it[1].state_dict(), without[1].state_dict())


@pytest.mark.parametrize("policy", POLICIES)
def test_all_ways_do_the_same(policy):
    results = [ran(POLICIES[policy](), OPTIMIZERS["sgd"], way, batches(15), {7: 30.0}, norm=False) for way in WAYS]
    first_model, _, first = results[0]
    for model, _, guard in results[1:]:
        for mine, theirs in zip(model.parameters(), first_model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        for a, b in zip(guard.record.readings, first.record.readings, strict=True):
            assert a.skipped == b.skipped
            assert a.scale == pytest.approx(b.scale, rel=1e-4)
            assert a.total_norm == pytest.approx(b.total_norm, rel=1e-4)
            assert a.grad_norms == pytest.approx(b.grad_norms, rel=1e-3, abs=1e-5)
            assert a.loss == pytest.approx(b.loss, rel=1e-4)


class Late(nn.Module):
    """A weight that starts at zero with a gradient of zero, one that is never used, one that is used from step 8."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.gate = nn.Parameter(torch.zeros(4))
        self.branch = nn.Parameter(torch.randn(4, 4))  # its gradient is zero until the gate has opened
        self.unused = nn.Parameter(torch.ones(2))
        self.late = nn.Linear(4, 4)
        self.step = 0

    def forward(self, x):
        hidden = self.first(x).tanh()
        hidden = hidden + self.gate * (hidden @ self.branch)
        if self.step >= 8:
            hidden = hidden + self.late(hidden)
        self.step += 1
        return hidden


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_zero_absent_ones_and_late_ones_freeze_nothing(policy, way):
    model = Late()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    starts = {name: value.detach().clone() for name, value in model.named_parameters()}
    with Guard(model, optimizer, clip=POLICIES[policy](), apply=way, sample_every_steps=None) as guard:
        for x in batches(40):
            optimizer.zero_grad()
            guard.loss((model(x) - 1.0).square().mean()).backward()
            optimizer.step()
    assert guard.skips == 0
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all(), name
        moved = float((value.detach() - starts[name]).norm())
        assert (moved == 0) == (name == "unused"), name
        if name != "unused":
            assert moved > 1e-4, name


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_without_any_gradient_signal_is_no_fault(policy, way):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with Guard(model, optimizer, clip=POLICIES[policy](), apply=way, sample_every_steps=None) as guard:
        for x in batches(3):
            optimizer.zero_grad()
            (model(x).sum() * 0.0).backward()
            optimizer.step()
    assert guard.skips == 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(np.isfinite(reading.total_norm) for reading in guard.record.readings)


def test_there_is_a_list_of_transforms():
    assert isinstance(transforms.ALL, tuple)
