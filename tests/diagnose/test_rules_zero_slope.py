"""EG108 where what comes back is a zero and not nothing: slopes of zero, and a backward that is never called."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad import Guard
from evengrad.diagnose import rules

RULE = {rule.code: rule for rule in rules.ALL}


class Cut(nn.Module):
    def __init__(self, between, dead=False):
        super().__init__()
        self.front, self.back, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between
        if dead:
            nn.init.zeros_(self.back.weight)

    def forward(self, inputs):
        return self.back(self.between(self.front(inputs)))


def trained(model, **settings):
    return RULE["EG108"].judge(recorded(model, **settings))


def recorded(model, *, backward=True, steps=5, lr=0.1):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    guard = Guard(model, optimizer, clip=False, tell=False, sample_every_steps=1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = guard.loss(functional.cross_entropy(model(torch.randn(12, 6)), torch.arange(12) % 3))
        if backward:
            loss.backward()
        optimizer.step()
    guard.detach()
    return guard.record


@pytest.mark.parametrize("between", [torch.round, torch.sign, torch.floor, lambda z: z * 0 + 1.0])
def test_an_operation_with_a_slope_of_zero_is_told_with_its_place(between):
    sign = trained(Cut(between))
    assert sign.speaks
    assert sign.where == ("front",)
    assert "between `front` and `back` has a slope of zero" in sign.cause


@pytest.mark.parametrize("between", [torch.tanh, torch.relu, lambda z: z + (z.round() - z).detach()])
def test_an_operation_with_a_slope_and_a_straight_through_one_are_silent(between):
    assert not trained(Cut(between)).speaks


def test_a_layer_that_starts_at_zero_passes_zeros_only_until_it_moves():
    assert not trained(Cut(torch.tanh, dead=True)).speaks
    assert not trained(Cut(torch.tanh, dead=True), lr=0.0).speaks


def test_in_float16_a_zero_may_be_what_is_too_small_for_it():
    record = recorded(Cut(torch.round))
    assert RULE["EG108"].judge(record).speaks
    assert not RULE["EG108"].judge(replace(record, dtype="float16")).speaks


def test_two_sampled_readings_are_not_enough():
    assert not trained(Cut(torch.round), steps=2).speaks
    assert trained(Cut(torch.round), steps=3).speaks


def test_dead_rectifiers_explain_a_gradient_of_zero():
    model = Cut(nn.ReLU())
    nn.init.constant_(model.front.bias, -100.0)
    assert not trained(model).speaks


def test_a_backward_that_is_never_called_is_told_so():
    sign = trained(Cut(torch.tanh), backward=False)
    assert sign.speaks
    assert "backward is never called" in sign.cause
