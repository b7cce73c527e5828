"""A training that is stopped and gone on with is the one that was not stopped, to the bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.nouns import Task
from evengrad.trial import _precision
from evengrad.trial._here import Here
from evengrad.trial._plan import Plan
from evengrad.trial._training import Training, run_course


def batches():
    for _ in range(5):
        inputs = torch.randn(16, 6)  # drawn from the global state, as a user's augmentation does
        yield inputs, inputs[:, :3].argmax(1)


def task(**changes):
    settings = {
        "model": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)),
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        "schedule": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24),
        "loss": functional.cross_entropy,
        "train": batches,
        "validate": lambda model: -model(torch.randn(8, 6)).square().mean().item(),
        "steps": 24,
    }
    return Task(**(settings | changes))


def plan(until=None, label="x", **changes):
    return Plan(task=task(**changes), label=label, seed=3, steps=24, stage="scout", until=until)


def nothing(_count):
    pass


def same(one, other):
    assert one.trial.losses == other.trial.losses
    assert one.trial.metric == other.trial.metric
    assert one.findings == other.findings
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("stops", [(24,), (1, 24), (3, 7, 8, 23, 24)])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"clip": 0.5}])
def test_stops_change_nothing(stops, changes):
    whole = run_course(plan(**changes), nothing)
    training = Training(plan(**changes))
    for stop in stops:
        torch.rand(5)  # whatever happens outside meanwhile
        course = training.advance(plan(until=stop, **changes), nothing)
        assert len(course.trial.losses) == stop
        assert (course.state is None) == (stop < 24)
    same(course, whole)
    assert [step for step, _ in course.trial.metrics] == list(stops)


def test_two_paused_trainings_do_not_touch_each_other():
    engine = Here()
    both = [plan(until=5, label="a"), plan(until=5, label="b", clip=0.1)]
    list(engine.run(both, nothing))
    results = dict(engine.run([plan(label="b", clip=0.1), plan(label="a")], nothing))
    same(results[1], run_course(plan(), nothing))
    same(results[0], run_course(plan(clip=0.1), nothing))


def test_what_was_forgotten_starts_anew_and_ends_the_same():
    engine = Here()
    list(engine.run([plan(until=5)], nothing))
    engine.forget([plan()])
    ((_, again),) = engine.run([plan()], nothing)
    same(again, run_course(plan(), nothing))


def test_accumulated_batches_make_the_step_of_their_mean_gradient():
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    labels = inputs[:, :3].argmax(1)
    halves = [(inputs[:16], labels[:16]), (inputs[16:], labels[16:])]
    plain = {"model": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), "schedule": None}
    two = run_course(plan(train=lambda: halves, accumulate=2, **plain), nothing)
    one = run_course(plan(train=lambda: [(inputs, labels)], **plain), nothing)
    assert two.trial.losses == pytest.approx(one.trial.losses, rel=1e-4)


def test_a_scaled_loss_trains_as_the_loss_itself_and_reads_the_same_gradients():
    plain = run_course(plan(), nothing)
    scaled = run_course(plan(loss_scale=1024.0), nothing)  # a power of two: not even rounded
    assert scaled.trial.losses == plain.trial.losses
    for one, other in zip(scaled.record.readings, plain.record.readings, strict=True):
        assert one.total_norm == pytest.approx(other.total_norm, rel=1e-6)
        for layer, wanted in zip(one.layers, other.layers, strict=True):
            assert layer.grad_rms == pytest.approx(wanted.grad_rms, rel=1e-5)
        for weight, wanted in zip(one.weights, other.weights, strict=True):
            assert weight.grad_absmax == pytest.approx(wanted.grad_absmax, rel=1e-5)


def test_a_dynamic_scale_that_is_too_large_skips_steps_and_comes_down(monkeypatch):
    monkeypatch.setattr(_precision, "FIRST_SCALE", 2.0**131)  # float32 ends at 2^128
    still = {"optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.0)}
    course = run_course(plan(loss_scale="dynamic", **still), nothing)
    skipped = [reading.skipped for reading in course.record.readings[:24]]
    assert skipped[0]
    assert not skipped[-1]
    assert skipped == sorted(skipped, reverse=True), "once it has come down it stays"
    assert all(reading.layers == () for reading in course.record.readings[:24] if reading.skipped)


def test_autocast_runs_the_forward_in_the_type_that_was_asked_for():
    seen = []

    def loss(output, target):
        seen.append(output.dtype)
        return functional.cross_entropy(output.float(), target)

    plain = {"model": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), "schedule": None}
    run_course(plan(loss=loss, autocast="bfloat16", **plain), nothing)
    assert set(seen) == {torch.bfloat16}
