"""The guard on a CUDA device."""

import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByTensorNorm, transforms
from evengrad.guard import Guard
from evengrad.measure import Norms
from evengrad.runlog import read

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIMIZERS = {
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True, weight_decay=0.5),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True, weight_decay=0.5),
    "adamw capturable": lambda p: torch.optim.AdamW(p, capturable=True),
    "sgd momentum fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 2)).cuda()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 300, generator=generator).cuda() for _ in range(count)]


def train(model, optimizer, inputs, before_step=lambda: None):
    for x in inputs:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        before_step()
        optimizer.step()


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_norms_are_exact_to_1e_6_and_stay_on_the_device(dtype):
    parameters = []
    for numel in (1, 257, 4096, 3_000_000):
        parameter = nn.Parameter(torch.zeros(numel, dtype=dtype, device="cuda"))
        parameter.grad = torch.full((numel,), 0.1, dtype=dtype, device="cuda")
        parameters.append(parameter)
    squared = Norms(parameters).squared()
    assert squared.is_cuda
    wanted = torch.stack([parameter.grad.double().square().sum() for parameter in parameters])
    torch.testing.assert_close(squared.double().sqrt(), wanted.sqrt(), rtol=1e-6, atol=0)


def test_measuring_does_not_wait_for_the_device():
    model = net()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1))
    norms = Norms(list(model.parameters()))
    norms.squared()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms.squared()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_devices_may_be_mixed():
    parameters = [nn.Parameter(torch.zeros(4, device=device)) for device in ("cpu", "cuda", "cpu")]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    assert Norms(parameters).squared().tolist() == pytest.approx([4.0, 16.0, 36.0], rel=1e-6)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_hook_clips_as_clip_grad_norm_does(make):
    model, other = net(), net()
    optimizer, plain = make(model.parameters()), make(other.parameters())
    guard = Guard(model, optimizer, clip=0.7)
    train(model, optimizer, batches(5))
    train(other, plain, batches(5), lambda: nn.utils.clip_grad_norm_(other.parameters(), 0.7))
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-4, atol=1e-6)
    assert guard.last_norm.is_cuda
    assert guard.record.readings[0].scale < 1


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("when", [0, 3])
def test_a_skipped_step_is_equal_to_the_bit_to_never_having_had_it(make, when):
    model, other = net(), net()
    optimizer, plain = make(model.parameters()), make(other.parameters())
    good = batches(5)
    guard = Guard(model, optimizer, clip=math.inf)
    train(model, optimizer, [*good[:when], torch.full((5, 300), math.nan, device="cuda"), *good[when:]])
    train(other, plain, good)
    assert guard.skips == 1
    assert torch.equal(weights(model), weights(other))
    for mine, theirs in zip(optimizer.state.values(), plain.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_an_overflow_is_skipped_by_both(fused):
    runs = []
    for guarded in (True, False):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused, foreach=not fused)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        guard = Guard(model, optimizer, clip=math.inf) if guarded else None
        inputs = batches(4)
        inputs[2] = torch.full((5, 300), math.inf, device="cuda")
        for x in inputs:
            optimizer.zero_grad()
            scaler.scale(model(x).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append((weights(model), scaler.get_scale(), guard))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-6, atol=1e-8)
    assert runs[0][1] == runs[1][1] == 512.0
    assert runs[0][2].skips == (1 if fused else 0)


@pytest.mark.parametrize(
    "clip", [None, 0.7, ByTensorNorm(0.1), [transforms.Centralize(), 0.7, transforms.ByValue(0.1)]]
)
@pytest.mark.parametrize("seam", ["hook", "call"])
def test_a_steady_step_of_a_fused_optimizer_never_waits_for_the_device(clip, seam, tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, clip=clip, log=tmp_path / "run")
    call = guard.clip_ if seam == "call" else lambda: None
    inputs = batches(12)
    train(model, optimizer, inputs[:3], call)
    assert "never waits" in repr(guard)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, optimizer, inputs[3:], call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.step == 12
    assert guard.skips == 0
    guard.detach()
    assert len(read(tmp_path / "run").readings) == 12


def test_the_device_and_the_host_decide_alike():
    results = []
    for way in ("conditional", "foreach", "folded"):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        guard = Guard(model, optimizer, apply=way)
        inputs = batches(20)
        inputs[7], inputs[12] = inputs[7] * 1000, inputs[12] * math.nan
        train(model, optimizer, inputs)
        results.append((weights(model), guard.skips, guard.clips))
    for other in results[1:]:
        torch.testing.assert_close(other[0], results[0][0], rtol=1e-4, atol=1e-6)
        assert other[1:] == results[0][1:]
