"""Loops with a mistake in the loop itself, which a task cannot have."""

from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from ._build import CE, by, drawn, he_uniform, passes, stack
from ._digits import digits
from ._program import Loop, MakeGuard

STEPS = 440
sgd, adam = partial(by, torch.optim.SGD), partial(by, torch.optim.Adam)


def steps(batch: int = 64, count: int = STEPS) -> Any:
    """Give the batches of that many steps."""
    return islice(passes(digits(), batch, 1 + count * batch // 1400), count)


def dense() -> nn.Sequential:
    return drawn(stack(64, 3, 64, nn.ReLU, 10), he_uniform)


def normalised() -> nn.Sequential:
    modules = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    return nn.Sequential(*modules, nn.Linear(64, 10))


def never_zeroed(make_optimizer: Any, make_guard: MakeGuard) -> Any:
    """Forget zero_grad: gradients add up over the training."""
    model = dense()
    optimizer = make_optimizer(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


def zeroed_at_pass_ends(make_guard: MakeGuard) -> Any:
    """Call zero_grad once per pass over the data, one indentation too far to the left."""
    model = dense()
    optimizer = sgd(0.5)(model)
    guard = make_guard(model, optimizer)
    for step, (inputs, labels) in enumerate(steps()):
        if step % 22 == 0:
            optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


def zeroed_before_step(set_to_none: bool, make_guard: MakeGuard) -> Any:
    """Call zero_grad between backward and step."""
    model = dense()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        optimizer.step()
    return guard


class Pretrained(nn.Module):
    """A body, whose head is made anew for other classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = drawn(stack(64, 3, 64, nn.ReLU, 64), he_uniform)
        self.head = nn.Linear(64, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


def head_replaced(make_guard: MakeGuard) -> Any:
    """Replace the head after the optimizer was made: the new one is in no optimizer."""
    model = Pretrained()
    optimizer = sgd(0.02)(model)
    model.head = nn.Linear(64, 10)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


def left_in_eval(make_guard: MakeGuard) -> Any:
    """Validate once at the beginning, and never go back to training mode: batch norm does not normalise."""
    model = normalised()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    model.eval()
    for inputs, labels in steps():
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
    return guard


def scheduled_to_zero(make_guard: MakeGuard) -> Any:
    """Step a schedule that was meant for passes at every batch: the learning rate is gone after a few."""
    model = dense()
    optimizer = sgd(0.1)(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    guard = make_guard(model, optimizer)
    for inputs, labels in steps():
        optimizer.zero_grad()
        guard.loss(CE(model(inputs), labels)).backward()
        optimizer.step()
        schedule.step()
    return guard


def stays_on_one_batch(make_guard: MakeGuard) -> Any:
    """Make the iterator anew at each step: the same batch always, whose labels are all of one class."""
    model = dense()
    optimizer = sgd(0.1)(model)
    guard = make_guard(model, optimizer)
    data = digits()
    order = data.targets.argsort(stable=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        rows = next(iter(order.split(64)))
        guard.loss(CE(model(data.inputs[rows]), data.targets[rows])).backward()
        optimizer.step()
    return guard


FAULTY = (
    Loop(
        number=201,
        name="no zero_grad, SGD",
        families=("zero-grad",),
        place=("optimizer",),
        run=partial(never_zeroed, sgd(0.1)),
    ),
    Loop(
        number=202,
        name="no zero_grad, Adam",
        families=("zero-grad",),
        place=("optimizer",),
        run=partial(never_zeroed, adam(1e-3)),
    ),
    Loop(
        number=203,
        name="zero_grad before the step, to zero",
        families=("zero-grad",),
        place=("optimizer",),
        run=partial(zeroed_before_step, False),
    ),
    Loop(
        number=204,
        name="zero_grad before the step, to none",
        families=("zero-grad",),
        place=("optimizer",),
        run=partial(zeroed_before_step, True),
    ),
    Loop(
        number=205,
        name="zero_grad once per pass",
        families=("zero-grad",),
        place=("optimizer",),
        run=zeroed_at_pass_ends,
    ),
    Loop(
        number=206,
        name="the head was replaced after the optimizer was made",
        families=("stale-weights", "signal-cut"),
        place=("head", "optimizer"),
        run=head_replaced,
    ),
    Loop(
        number=207,
        name="evaluation mode in training, batch norm",
        families=("batch-norm",),
        place=("1", "4", "7", "10"),
        run=left_in_eval,
    ),
    Loop(
        number=208,
        name="a schedule that ends at once",
        families=("lr-low",),
        place=("optimizer",),
        run=scheduled_to_zero,
    ),
    Loop(
        number=209,
        name="one batch of one class, always the same",
        families=("labels", "bad-data"),
        place=("data",),
        run=stays_on_one_batch,
    ),
)
