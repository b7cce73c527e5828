"""What a user's forward and backward may do while they are looked into: it must not fail for being watched."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from evengrad.guard import Guard
from evengrad.guard._schedule import most_of


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def trained(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_is_traced_while_it_is_watched():
    model = small()
    with Guard(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        traced = torch.jit.trace(model, torch.ones(1, 4))
    assert torch.equal(traced(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_a_model_is_transformed_while_it_is_watched():
    model = small()
    wanted = torch.func.jacrev(model)(torch.ones(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Guard(model, optimizer):
        assert torch.equal(torch.func.jacrev(model)(torch.ones(4)), wanted)
        trained(model, optimizer)


def test_what_fails_in_a_hook_is_said_once_and_ends_the_looking_and_not_the_run(monkeypatch, caplog):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(*given):
        raise ZeroDivisionError("in a hook")

    monkeypatch.setattr("evengrad.probe._sample.Place.take", broken)
    with Guard(model, optimizer, tell=False) as guard:
        trained(model, optimizer)
        assert guard.step == 3
        assert not any(reading.layers for reading in guard.record.readings)
    said = [record for record in caplog.records if record.name == "evengrad.probe"]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert "ZeroDivisionError: in a hook" in said[0].getMessage()


def test_what_fails_in_the_backward_does_not_come_out_of_it(monkeypatch, caplog):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(*given):
        raise ZeroDivisionError("in the backward")

    monkeypatch.setattr("evengrad.guard._ends.EndsOfModel.look", broken)
    with Guard(model, optimizer, tell=False) as guard:
        trained(model, optimizer)
        assert guard.step == 3
    assert "in the backward" in caplog.text


def test_weights_that_were_replaced_are_let_go_when_their_numbers_are_read():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Guard(model, optimizer, tell=False) as guard:
        trained(model, optimizer)
        old = [weakref.ref(parameter) for parameter in model.parameters()]
        for layer in (model[0], model[2]):
            layer.weight, layer.bias = nn.Parameter(layer.weight.data.clone()), nn.Parameter(layer.bias.data.clone())
        optimizer.param_groups.clear()
        optimizer.state.clear()
        optimizer.add_param_group({"params": list(model.parameters())})
        trained(model, optimizer)
        assert guard.record.readings
        trained(model, optimizer)
        gc.collect()
        assert [one() for one in old] == [None] * 4


def test_the_range_of_losses_that_span_all_of_float64_is_told():
    assert most_of([1e20, 1e-310, 1e20]) >= 1e20
