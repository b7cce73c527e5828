"""A gradient that was never cleared since the last step is known for that, and nothing else is taken for it."""

import pytest
import torch
from torch import nn

from evengrad.guard import Guard

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, foreach=False),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def backward(model, step):
    generator = torch.Generator().manual_seed(step)
    model(torch.randn(6, 4, generator=generator)).square().mean().backward()


def cleared_before(model, optimizer, step):
    optimizer.zero_grad()
    backward(model, step)


def cleared_in_place(model, optimizer, step):
    optimizer.zero_grad(set_to_none=False)
    backward(model, step)


def cleared_after_the_forward(model, optimizer, step):
    loss = model(torch.ones(6, 4)).square().mean()
    model.zero_grad()
    loss.backward()


def cleared_by_hand_through_data(model, optimizer, step):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()
    backward(model, step)


def cleared_by_hand_through_detach(model, optimizer, step):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.detach_()
            parameter.grad.zero_()
    backward(model, step)


def micro_batches(model, optimizer, step):
    optimizer.zero_grad()
    for part in range(3):
        backward(model, step + part)


def micro_batches_clipped_one_by_one(model, optimizer, step):
    optimizer.zero_grad()
    for part in range(3):
        backward(model, step + part)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def cleared_between_two_backwards(model, optimizer, step):
    backward(model, step)
    optimizer.zero_grad()
    backward(model, step + 1)


def a_memory_of_gradients_by_hand(model, optimizer, step):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)
    backward(model, step)


def assigned_by_hand(model, optimizer, step):
    loss = model(torch.ones(6, 4)).square().mean()
    for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        parameter.grad = grad


CLEARED = [
    cleared_before,
    cleared_in_place,
    cleared_after_the_forward,
    cleared_by_hand_through_data,
    cleared_by_hand_through_detach,
    micro_batches,
    micro_batches_clipped_one_by_one,
    cleared_between_two_backwards,
    a_memory_of_gradients_by_hand,
]


def never_cleared(model, optimizer, step):
    backward(model, step)


def never_cleared_with_micro_batches(model, optimizer, step):
    backward(model, step)
    backward(model, step + 1)


def never_cleared_and_clipped(model, optimizer, step):
    backward(model, step)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def run(loop, make, **settings):
    model = net()
    optimizer = make(model.parameters())
    with Guard(model, optimizer, sample_every_steps=1, tell=False, **settings) as guard:
        for step in range(6):
            loop(model, optimizer, step)
            optimizer.step()
    return [reading.leftover for reading in guard.record.readings]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loop", CLEARED)
def test_a_gradient_that_was_cleared_or_changed_is_not_left_over(loop, name):
    assert run(loop, OPTIMIZERS[name]) == [False] * 6


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loop", [never_cleared, never_cleared_with_micro_batches, never_cleared_and_clipped])
@pytest.mark.parametrize("settings", [{}, {"clip": 0.01}, {"clip": False}])
def test_a_gradient_that_was_never_cleared_is_left_over_from_the_second_step_on(loop, name, settings):
    assert run(loop, OPTIMIZERS[name], **settings) == [False, *[True] * 5]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nobody_knows_where_gradients_are_assigned_by_hand(name):
    assert run(assigned_by_hand, OPTIMIZERS[name]) == [None] * 6


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_nothing_of_it(scaled, fused):
    for clears in (True, False):
        model, scaler = net(), torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        with Guard(model, optimizer, scaler=scaler, sample_every_steps=1, tell=False) as guard:
            for _ in range(4):
                if clears:
                    optimizer.zero_grad()
                scaler.scale(model(torch.ones(6, 4)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        expected = [False] * 4 if clears else [False, True, True, True]
        assert [reading.leftover for reading in guard.record.readings] == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_another_networks_loss_adds_and_the_loop_then_clears_is_not_left_over(name):
    torch.manual_seed(0)
    maker, critic = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    of_maker, of_critic = OPTIMIZERS[name](maker.parameters()), OPTIMIZERS[name](critic.parameters())
    guards = [
        Guard(maker, of_maker, sample_every_steps=1, tell=False),
        Guard(critic, of_critic, sample_every_steps=1, tell=False),
    ]
    losses = []
    for step in range(5):
        noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        of_critic.zero_grad()
        loss = critic(maker(noise).detach()).mean() - critic(torch.ones(6, 4)).mean()
        losses.append(float(loss.detach()))
        loss.backward()
        of_critic.step()
        of_maker.zero_grad()
        (-critic(maker(noise)).mean()).backward()  # adds to the critic's gradients too
        of_maker.step()
    assert [reading.leftover for guard in guards for reading in guard.record.readings] == [False] * 10
    assert [reading.loss for reading in guards[1].record.readings] == losses  # not with the maker's


def test_on_steps_that_are_not_sampled_nobody_looks():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, sample_every_steps=3, tell=False) as guard:
        for step in range(5):
            backward(model, step)
            optimizer.step()
    assert [reading.leftover for reading in guard.record.readings] == [False, None, None, True, None]


def test_frozen_parameters_and_sparse_gradients_are_passed_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, sample_every_steps=1, tell=False) as guard:
        for _ in range(3):
            model(torch.tensor([0, 3])).square().mean().backward()
            optimizer.step()
    assert [reading.leftover for reading in guard.record.readings] == [False, True, True]


def test_where_one_part_only_is_cleared_nothing_is_called_left_over():
    def loop(model, optimizer, step):
        model[0].zero_grad()
        backward(model, step)

    assert run(loop, OPTIMIZERS["SGD"]) == [False] * 6


def test_a_change_outside_of_the_elements_that_are_compared_counts():
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, sample_every_steps=1, tell=False) as guard:
        for _ in range(3):
            if model.weight.grad is not None:
                model.weight.grad[0, 0] = 0.0
            model(torch.ones(2, 100)).square().mean().backward()
            optimizer.step()
    assert [reading.leftover for reading in guard.record.readings] == [False] * 3
