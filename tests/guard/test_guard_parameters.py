"""Which parameters a guard guards when they come, go and are shared."""

import math

import pytest
import torch
from torch import nn

from evengrad.clip import ByGlobalNorm
from evengrad.guard import Guard


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def train(model, optimizer, inputs):
    for x in inputs:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def test_groups_added_later_and_strangers_and_ties_are_guarded_under_their_names():
    model = net()
    model[2].weight2 = model[2].weight
    stranger = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([model[0].weight, stranger], lr=0.1)
    guard = Guard(model, optimizer, clip=ByGlobalNorm(math.inf))
    train(model, optimizer, batches(1))
    assert guard.record.parameters == ("0.weight", "optimizer.group0.1")
    optimizer.add_param_group({"params": [model[2].weight], "lr": 0.5})
    train(model, optimizer, batches(1))
    record = guard.record
    assert record.parameters == ("0.weight", "optimizer.group0.1", "2.weight")
    assert record.readings[0].grad_norms[1:] == (0.0, 0.0)
    assert record.readings[1].grad_norms[2] == pytest.approx(float(model[2].weight.grad.norm()), rel=1e-6)
    assert record.readings[1].lrs == (0.1, 0.5)


def test_a_parameter_that_takes_the_place_of_another_is_guarded_instead():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, clip=0.5)
    train(model, optimizer, batches(1))
    model[2].weight = nn.Parameter(3 * model[2].weight.detach())
    optimizer.param_groups[0]["params"][2] = model[2].weight
    model(batches(1)[0]).square().sum().backward()
    wanted = [float(parameter.grad.norm()) for parameter in model.parameters()]
    optimizer.step()
    assert guard.record.readings[1].grad_norms == pytest.approx(wanted, rel=1e-6)
    clipped = math.hypot(*(float(parameter.grad.norm()) for parameter in model.parameters()))
    assert clipped == pytest.approx(0.5, rel=1e-5)
    model[2].weight.grad.fill_(math.nan)
    optimizer.step()
    assert guard.skips == 1
