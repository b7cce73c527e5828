"""A trial reads what each sampled step did to the weights, and what is known before the first."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task
from evengrad.trial._plan import Plan, sampled_steps
from evengrad.trial._training import run_course

STEPS = 12


def batches():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator))] * 2


def task(**changed):
    settings = {
        "model": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loss": functional.cross_entropy,
        "train": batches,
        "validate": lambda model: 0.0,
        "steps": STEPS,
    }
    return Task(**(settings | changed))


def course_of(seed=5, **changed):
    return run_course(Plan(task=task(**changed), label="", seed=seed, steps=STEPS, stage="sick"), lambda _: None)


def weights_by_hand(seed=5):
    """The same training without anything of ours; the weights before each step, and after the last."""
    torch.manual_seed(seed)
    made = task()
    model = made.model()
    optimizer = made.optimizer(model)
    found = [[one.detach().clone() for one in model.parameters()]]
    data = batches()
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = data[step % 2]
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        found.append([one.detach().clone() for one in model.parameters()])
    return found


def test_update_and_way_are_those_of_the_real_steps():
    readings = course_of().record.readings
    weights = weights_by_hand()
    sampled = [reading for reading in readings[:STEPS] if reading.weights]
    assert {reading.step for reading in sampled} == sampled_steps(STEPS)
    for reading in sampled:
        for place, one in enumerate(reading.weights):
            start, before, after = weights[0][place], weights[reading.step][place], weights[reading.step + 1][place]
            assert one.update_ratio == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-3)
            assert one.moved_ratio == pytest.approx(((before - start).norm() / start.norm()).item(), rel=1e-3, abs=1e-9)
            assert one.still_frac is not None
            assert one.grad_rms > 0
    last = readings[-1]
    assert last.step == STEPS
    for place, one in enumerate(last.weights):
        start, end = weights[0][place], weights[STEPS][place]
        assert one.moved_ratio == pytest.approx(((end - start).norm() / start.norm()).item(), rel=1e-3)
        assert one.update_ratio is None


def test_steps_that_are_not_sampled_have_no_readings_of_weights_or_ends():
    readings = run_course(Plan(task=task(), label="", seed=5, steps=200, stage="sick"), lambda _: None).record.readings
    quiet = [reading for reading in readings[:200] if reading.step not in sampled_steps(200)]
    assert quiet
    assert all((reading.weights, reading.ends) == ((), None) for reading in quiet)
    assert all(reading.ends.loss_ops for reading in readings if reading.step in sampled_steps(200))


def test_gradients_are_read_as_they_were_before_clipping():
    free, clipped = course_of().record.readings[0], course_of(clip=1e-3).record.readings[0]
    assert clipped.scale < 0.1
    assert [one.grad_rms for one in clipped.weights] == [one.grad_rms for one in free.weights]
    assert clipped.weights[0].update_ratio == pytest.approx(free.weights[0].update_ratio * clipped.scale, rel=1e-3)


def test_a_step_that_is_skipped_or_breaks_is_kept_with_no_word_of_what_it_did():
    from evengrad.clip import SkipNonFinite

    model = lambda: nn.Sequential(nn.Linear(4, 3), Blowing())  # noqa: E731
    course = course_of(model=model, clip=SkipNonFinite())
    reading = course.record.readings[0]
    assert reading.skipped
    assert [one.update_ratio for one in reading.weights] == [None, None]


class Blowing(nn.Module):
    def forward(self, x):
        return Scaled.apply(x)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def test_the_record_says_what_trains_what():
    def optimizer(model):
        return torch.optim.AdamW(model[0].parameters(), weight_decay=0.2)

    record = course_of(optimizer=optimizer).record
    assert record.parameters == ("0.weight", "0.bias")
    assert record.setup.optimizer == "AdamW"
    assert (record.setup.weight_decay, record.setup.numels) == (0.2, (32, 8))
    assert record.setup.left_out == ("2.weight", "2.bias")
    assert all(len(reading.weights) in {0, 2} for reading in record.readings)
