"""The loss that is found by itself is the one that the step's gradients are of, or is not known."""

import sys
import threading

import pytest
import torch
from torch import nn

from evengrad.guard import Guard


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


def run(loop, steps=4, make=torch.optim.Adam, guarded=None, **settings):
    """Run a loop that returns the loss that its step is to show; returns what was found and what should have been."""
    model = net()
    optimizer = make(model.parameters(), lr=0.01)
    expected = []
    with Guard(model, optimizer, tell=False, sample_every_steps=None, **settings) as guard:
        for step in range(steps):
            expected.append(loop(model, optimizer, step))
            optimizer.step()
    return [reading.loss for reading in guard.record.readings], expected


def loss_of(model, step):
    return model(batch(step)).square().mean()


def plain(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return float(loss.detach())


def by_function(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    torch.autograd.backward([loss], retain_graph=True)
    return float(loss.detach())


def accumulated(model, optimizer, step):
    optimizer.zero_grad()
    losses = [loss_of(model, 10 * step + part) / 3 for part in range(3)]
    for loss in losses:
        loss.backward()
    return sum(float(loss.detach()) for loss in losses)


def two_losses(model, optimizer, step):
    optimizer.zero_grad()
    output = model(batch(step))
    first, second = output[:, 0].square().mean(), output[:, 1].abs().mean()
    first.backward(retain_graph=True)
    second.backward()
    return float((first + second).detach())


def two_losses_at_once(model, optimizer, step):
    optimizer.zero_grad()
    output = model(batch(step))
    first, second = output[:, 0].square().mean(), output[:, 1].abs().mean()
    torch.autograd.backward([first, second])
    return float((first + second).detach())


def the_first_cleared_again(model, optimizer, step):
    loss_of(model, 100 + step).backward()
    return plain(model, optimizer, step)


def the_first_cleared_in_place(model, optimizer, step):
    loss_of(model, 100 + step).backward()
    optimizer.zero_grad(set_to_none=False)
    loss = loss_of(model, step)
    loss.backward()
    return float(loss.detach())


def with_an_evaluation(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    model.eval()
    loss_of(model, 100 + step)
    model.train()
    return float(loss.detach())


def through_a_checkpoint(model, optimizer, step, reentrant=True):
    optimizer.zero_grad()
    hidden = torch.utils.checkpoint.checkpoint(model[:2], batch(step).requires_grad_(), use_reentrant=reentrant)
    loss = model[2](hidden).square().mean()
    loss.backward()
    return float(loss.detach())


def with_a_gradient_penalty(model, optimizer, step):
    optimizer.zero_grad()
    x = batch(step).requires_grad_()
    output = model(x)
    (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    loss = output.square().mean() + slope.square().mean()
    loss.backward()
    return float(loss.detach())


def with_gradients_of_gradients(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward(create_graph=True)
    for parameter in model.parameters():
        parameter.grad = parameter.grad.detach()
    return float(loss.detach())


def one_element_with_dimensions(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step).reshape(1, 1)
    loss.backward()
    return float(loss.detach())


KNOWN = [
    plain,
    by_function,
    accumulated,
    two_losses,
    two_losses_at_once,
    the_first_cleared_again,
    the_first_cleared_in_place,
    with_an_evaluation,
    through_a_checkpoint,
    with_a_gradient_penalty,
    one_element_with_dimensions,
]


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("loop", KNOWN)
def test_the_loss_is_that_of_the_gradients_that_the_step_sees(loop):
    found, expected = run(loop)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_backward_that_keeps_its_graph_shows_its_loss():
    found, expected = run(with_gradients_of_gradients)
    assert found == pytest.approx(expected, rel=1e-6)


def with_gradients_of_its_own(model, optimizer, step):
    optimizer.zero_grad()
    loss_of(model, step).backward(torch.tensor(3.0))


def of_a_vector(model, optimizer, step):
    optimizer.zero_grad()
    output = model(batch(step))
    output.backward(torch.ones_like(output))


def by_hand(model, optimizer, step):
    loss = loss_of(model, step)
    for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        parameter.grad = grad


def partly_unknown(model, optimizer, step):
    plain(model, optimizer, step)
    loss_of(model, step).backward(torch.tensor(3.0))


@pytest.mark.parametrize("loop", [with_gradients_of_its_own, of_a_vector, by_hand, partly_unknown])
def test_what_is_no_loss_is_not_known(loop):
    assert run(loop)[0] == [None] * 4


def test_a_loss_that_is_handed_over_wins_and_ends_the_watch():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, tell=False, sample_every_steps=None) as guard:
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            guard.loss(loss * 7)
            loss.backward()
            optimizer.step()
        assert not any(one._post_accumulate_grad_hooks for one in model.parameters())
        last = plain(model, optimizer, 3)
        optimizer.step()
        again = plain(model, optimizer, 4)
        optimizer.step()
    losses = [reading.loss for reading in guard.record.readings]
    assert losses[2] == pytest.approx(7 * float(loss.detach()))
    assert losses[3] is None  # nobody watched it
    assert losses[4] == pytest.approx(again)
    assert last > 0


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("clip", [None, False])
def test_a_scalers_scale_is_taken_off_whether_or_not_it_was_handed_over(fused, known, clip):
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=4096.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    expected = []
    with Guard(model, optimizer, clip=clip, tell=False, scaler=scaler if known else None) as guard:
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            expected.append(float(loss.detach()))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [reading.loss for reading in guard.record.readings] == pytest.approx(expected, rel=1e-6)


def test_policies_do_not_see_a_loss_that_was_not_handed_over():
    model = net()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=100.0
    )  # the default of SGD would hold it to what the loss allows
    with Guard(model, optimizer, tell=False) as guard:
        plain(model, optimizer, 0)
        optimizer.step()
    assert guard.clips == 0
    assert guard.record.readings[0].loss is not None


def test_the_losses_of_two_models_are_not_mixed():
    models = [net(), net()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    guards = [Guard(model, one, tell=False) for model, one in zip(models, optimizers, strict=True)]
    expected = [[], []]
    for step in range(3):
        for place in (0, 1):
            expected[place].append(plain(models[place], optimizers[place], 10 * step + place))
        for optimizer in optimizers:
            optimizer.step()
    for guard, losses in zip(guards, expected, strict=True):
        assert [reading.loss for reading in guard.record.readings] == losses


def test_a_backward_in_another_thread_shows_its_loss():
    def loop(model, optimizer, step):
        found = []
        thread = threading.Thread(target=lambda: found.append(plain(model, optimizer, step)))
        thread.start()
        thread.join()
        return found[0]

    found, expected = run(loop)
    assert found == expected


def test_a_parameter_without_a_gradient_is_given_up_for_one_that_has_one():
    model = net()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1)), *model.parameters()], lr=0.01)
    with Guard(model, optimizer, tell=False) as guard:
        for step in range(3):
            last = plain(model, optimizer, step)
            optimizer.step()
    assert guard.record.readings[-1].loss == last


def test_torch_is_left_as_it_is_and_so_are_the_parameters():
    before = (torch.autograd.backward, torch.Tensor.backward, sys.getprofile(), sys.gettrace())
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer):
        plain(model, optimizer, 0)
        assert (torch.autograd.backward, torch.Tensor.backward, sys.getprofile(), sys.gettrace()) == before
        optimizer.step()
    assert not any(one._post_accumulate_grad_hooks or one._backward_hooks for one in model.parameters())


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("what", ["model", "loss and backward"])
def test_a_compiled_training_step_shows_its_loss_and_stays_what_it_was(what):
    def trained(guarded):
        torch.compiler.reset()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        fast = torch.compile(model, backend="aot_eager")

        def step(x):
            optimizer.zero_grad()
            loss = (fast if what == "model" else model)(x).square().mean()
            loss.backward()
            return loss.detach()

        if what != "model":
            step = torch.compile(step, backend="aot_eager")
        guard = Guard(model, optimizer, tell=False) if guarded else None
        losses = []
        for number in range(4):
            losses.append(float(step(batch(number))))
            optimizer.step()
        torch.compiler.reset()
        return losses, guard

    losses, guard = trained(guarded=True)
    assert losses == trained(guarded=False)[0]
    assert [reading.loss for reading in guard.record.readings] == pytest.approx(losses)
