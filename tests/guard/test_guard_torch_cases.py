"""What torch's own tests ask of `clip_grad_norm_` and `clip_grad_value_`, asked of the guard's call seam."""

import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByGlobalNorm, transforms
from evengrad.guard import Guard

ORDERS = (1.0, 1.5, 2.0, 3.5, 4.0, math.inf)


def parameters(*grads):
    found = nn.ParameterList(nn.Parameter(torch.zeros_like(grad)) for grad in grads)
    for parameter, grad in zip(found, grads, strict=True):
        parameter.grad = grad.clone()
    return found


def guard_of(model, clip, **settings):
    return Guard(model, torch.optim.SGD(model.parameters(), lr=1.0), clip=clip, **settings)


def total(model, order):
    return float(torch.linalg.vector_norm(torch.cat([p.grad.flatten().double() for p in model]), order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", ["conditional", "foreach"])
def test_the_norm_is_returned_and_everything_is_scaled_by_one_constant(order, way):
    grads = (torch.arange(1.0, 101.0).view(10, 10), torch.ones(10).div(1000))
    model = parameters(*grads)
    before = total(model, order)
    norm = guard_of(model, ByGlobalNorm(2.0, norm_type=order), apply=way).clip_()
    assert float(norm) == pytest.approx(before, rel=1e-6)
    assert total(model, order) == pytest.approx(2.0, rel=1e-5)
    assert total(model, order) <= before
    scale = torch.cat([(p.grad / grad).flatten() for p, grad in zip(model, grads, strict=True)])
    assert float(scale.std()) < 1e-7
    other = parameters(*grads)
    torch_norm = nn.utils.clip_grad_norm_(other.parameters(), 2.0, norm_type=order)
    assert float(norm) == pytest.approx(float(torch_norm), rel=1e-6)
    for mine, theirs in zip(model, other, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_small_gradients_are_not_touched(order):
    grads = (torch.rand(10, 10).div(10000), torch.ones(10).div(500))
    model = parameters(*grads)
    before = total(model, order)
    norm = guard_of(model, ByGlobalNorm(2.0, norm_type=order)).clip_()
    assert float(norm) == pytest.approx(before, rel=1e-6)
    assert before <= 2.0
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model, grads, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scalar", [math.inf, -math.inf, math.nan, 2e200, -2e200])
@pytest.mark.parametrize("only_one", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_gradient_that_is_not_finite_skips_the_step_and_stays_as_it_was(order, scalar, only_one, prefix):
    grad = torch.ones(10, dtype=torch.float64)
    grad[slice(1) if only_one else slice(None)] *= scalar
    grads = (torch.ones(10, dtype=torch.float64), grad) if prefix else (grad,)
    model = parameters(*grads)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    guard = Guard(model, optimizer, clip=ByGlobalNorm(1.0, norm_type=order))
    guard.clip_()
    optimizer.step()
    assert guard.skips == 1
    assert all(torch.equal(p, torch.zeros_like(p)) for p in model)
    assert all(torch.equal(p.grad.nan_to_num(7.0), was.nan_to_num(7.0)) for p, was in zip(model, grads, strict=True))


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("scalar", [2e22, -2e22])
def test_a_large_gradient_in_float64_is_clipped_and_not_lost(order, scalar):
    model = parameters(torch.ones(10, dtype=torch.float64) * scalar)
    guard = guard_of(model, ByGlobalNorm(1.0, norm_type=order))
    before = total(model, order)
    assert float(guard.clip_()) == pytest.approx(before, rel=1e-6)
    assert total(model, order) == pytest.approx(1.0, rel=1e-5)


def test_values_are_clipped_as_clip_grad_value_does():
    grads = (torch.arange(-50.0, 50.0).view(10, 10).div(5), torch.ones(10).mul(2))
    model, other = parameters(*grads, torch.zeros(3)), parameters(*grads, torch.zeros(3))
    model[2].grad = other[2].grad = None
    guard_of(model, transforms.ByValue(2.5)).clip_()
    nn.utils.clip_grad_value_(other.parameters(), 2.5)
    assert all(torch.equal(mine.grad, theirs.grad) for mine, theirs in zip(model[:2], other[:2], strict=True))
    assert model[2].grad is None
    assert max(float(p.grad.abs().max()) for p in model[:2]) == 2.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_is_not_rounded_to_it(dtype):
    grads = [torch.randn(300, 100, generator=torch.Generator().manual_seed(k)).to(dtype) * 0.01 for k in range(3)]
    model = parameters(*grads)
    exact = total(model, 2.0)
    norm = guard_of(model, math.inf).clip_()
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    theirs = nn.utils.clip_grad_norm_(parameters(*grads).parameters(), math.inf)
    assert abs(float(theirs) / exact - 1) > 1e-5


def test_half_precision_that_overflows_its_own_range_is_measured():
    model = parameters(torch.full((4,), 4e4, dtype=torch.float16))
    assert float(guard_of(model, 1.0).clip_()) == pytest.approx(8e4, rel=1e-6)
    assert math.isinf(float(nn.utils.clip_grad_norm_(parameters(torch.full((4,), 4e4).half()).parameters(), math.inf)))
