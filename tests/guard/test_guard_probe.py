"""Looking inside at every step changes nothing of a run, of whatever kind, and sees what is there."""

import contextlib
import logging
import math

import pytest
import torch
from probed_models import KINDS, VECTORS, batch, dense, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.guard import Guard
from evengrad.probe import EndsSample, Sampler, WeightSampler
from evengrad.runlog import read

LOOPS = ["plain", "accumulated", "two losses", "two optimizers", "autocast and scaled", "scaled and fused"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"clip": math.inf}, {"clip": False}], ids=["guard", "watch"])
def test_a_run_that_is_looked_into_at_every_step_is_equal_to_the_bit(kind, settings):
    model, guard, same = run(kind, **settings)
    assert same == run(kind, guarded=False)[2]
    readings = guard.record.readings
    assert all(reading.layers and reading.weights and reading.ends is not None for reading in readings)
    guard.detach()
    for module in model.modules():
        assert not any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    assert not any(one._post_accumulate_grad_hooks or one._backward_hooks for one in model.parameters())


@pytest.mark.parametrize("kind", ["dense", "recurrent", "shared and frozen"])
@pytest.mark.parametrize("loop", [*LOOPS[1:], "not handed over"])
def test_so_is_one_with_a_loop_of_another_kind(kind, loop):
    _, guard, same = run(kind, loop, clip=False)
    assert same == run(kind, loop, guarded=False)[2]
    assert all(reading.layers and reading.weights for reading in guard.record.readings)


@pytest.mark.parametrize("loop", ["plain", "autocast and scaled", "scaled and fused"])
def test_weights_hold_what_the_step_did_to_them_in_the_order_of_the_parameters(loop):
    _, guard, _ = run("dense", loop, steps=3, clip=False)
    record = guard.record
    assert [one.name for one in record.readings[1].weights] == list(record.parameters)
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=loop == "scaled and fused")
    for step in range(2):
        optimizer.zero_grad()
        x, y = batch(VECTORS, 10 * step)
        cast = torch.autocast("cpu", torch.bfloat16) if "autocast" in loop else contextlib.nullcontext()
        with cast:
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        before = [one.detach().double().clone() for one in model.parameters()]
        grads = [one.grad.double().clone() for one in model.parameters()]
        optimizer.step()
    for seen, old, new, grad in zip(record.readings[1].weights, before, model.parameters(), grads, strict=True):
        assert seen.grad_rms == pytest.approx(float(grad.square().mean().sqrt()), rel=2e-2 if "auto" in loop else 1e-4)
        moved = float((new.detach().double() - old).norm() / old.norm()) if old.norm() else None
        assert seen.update_ratio == (pytest.approx(moved, rel=1e-2) if moved is not None else None)


def test_ends_know_input_output_target_and_the_graph_of_a_loss_that_is_handed_over():
    _, guard, _ = run("dense", steps=2)
    ends = guard.record.readings[1].ends
    x, y = batch(VECTORS, 10)
    assert ends.inputs[0].std == pytest.approx(float(x.double().std(correction=0)), rel=1e-5)
    assert ends.output.shape == (6, 4)
    assert (ends.target.minimum, ends.target.maximum) == (float(y.min()), float(y.max()))
    assert ends.loss_ops[:2] == ("NllLoss", "LogSoftmax")


@pytest.mark.parametrize("loop", ["not handed over"])
def test_ends_know_the_graph_but_not_the_target_where_it_is_found(loop):
    _, guard, _ = run("dense", loop, steps=2)
    ends = guard.record.readings[1].ends
    assert ends.loss_ops[:2] == ("NllLoss", "LogSoftmax")
    assert ends.inputs[0].shape == (6, 5)


def test_a_copy_of_the_loss_is_no_loss_without_a_graph():
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, tell=False)
    x, y = batch(VECTORS, 0)
    loss = nn.functional.cross_entropy(model(x), y)
    guard.loss(loss.detach())
    loss.backward()
    optimizer.step()
    ends = guard.record.readings[0].ends
    assert ends.cuts == ()
    assert "LogSoftmax" in ends.loss_ops


def test_a_call_in_evaluation_mode_or_without_gradients_is_not_that_of_the_step():
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, tell=False)
    x, y = batch(VECTORS, 0)
    loss = nn.functional.cross_entropy(model(x), y)
    with torch.no_grad():
        model(torch.zeros(3, 5))
    model.eval()
    model(torch.zeros(2, 5))
    guard.loss(loss).backward()
    optimizer.step()
    assert guard.record.readings[0].ends.inputs[0].shape == (6, 5)


def test_nothing_that_was_held_for_the_ends_outlives_the_beginning_of_the_backward():
    torch.manual_seed(0)
    model = dense()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), tell=False)
    x, y = batch(VECTORS, 0)
    ends = guard._books.sampling._samplers.ends
    output = model(x)
    assert ends._held is not None
    nn.functional.cross_entropy(output, y).backward()
    assert ends._held is None


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_a_skipped_step_has_gradients_and_no_update(way):
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    guard = Guard(model, optimizer, sample_every_steps=1, tell=False, apply=way)
    model(torch.full((6, 5), math.nan)).sum().backward()
    optimizer.step()
    reading = guard.record.readings[0]
    assert reading.skipped
    assert [one.update_ratio for one in reading.weights] == [None] * 6
    assert [one.still_frac for one in reading.weights] == [None] * 6


@pytest.mark.parametrize("way", ["conditional", "foreach", "folded"])
def test_log_and_record_hold_the_same_samples_and_set_up(way, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.01, weight_decay=0.1, fused=True)
    with Guard(model, optimizer, log=tmp_path / "run", apply=way, sample_every_steps=2, tell=False) as guard:
        for step in range(5):
            optimizer.zero_grad()
            x, y = batch(VECTORS, step)
            guard.loss(nn.functional.cross_entropy(model(x), y)).backward()
            optimizer.step()
    record, logged = guard.record, read(tmp_path / "run")
    assert logged.setup == record.setup
    assert (record.setup.optimizer, record.setup.weight_decay) == ("AdamW", 0.1)
    assert record.setup.left_out == ("2.weight",)
    assert record.setup.frozen == ("2.bias",)
    assert record.setup.numels == (40, 8)
    for one, other in zip(record.readings, logged.readings, strict=True):
        assert (one.step, one.leftover, one.loss) == (other.step, other.leftover, other.loss)
        assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
        assert [weight.update_ratio for weight in one.weights] == pytest.approx(
            [weight.update_ratio for weight in other.weights], rel=1e-5
        )
        assert (one.ends is None) == (other.ends is None)
        if one.ends is not None:
            assert one.ends.loss_ops == other.ends.loss_ops
    assert [reading.step for reading in record.readings if reading.ends is not None] == [0, 2, 4]


class NoReads(TorchDispatchMode):
    """Fail where a number is read on the host in a way that would wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        assert name not in {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{"apply": "folded"}, {"apply": "foreach"}, {"clip": False}])
@pytest.mark.parametrize("handed", [False, True])
def test_a_sampled_step_reads_nothing_in_a_way_that_would_wait(settings, handed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    guard = Guard(model, optimizer, sample_every_steps=1, tell=False, **settings)
    for step in range(3):
        x, y = batch(VECTORS, step)
        with NoReads():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            if handed:
                guard.loss(loss)
            loss.backward()
            optimizer.step()
    assert guard.record.readings[2].weights[0].update_ratio > 0
    assert guard.record.readings[2].loss == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize(("kind", "method"), [(Sampler, "packed"), (WeightSampler, "before"), (EndsSample, "packed")])
def test_what_fails_in_looking_ends_the_looking_and_not_the_run(kind, method, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("a tensor of\x1b[31m an unknown kind")

    monkeypatch.setattr(kind, method, broken)
    model, guard, same = run("dense", steps=4, clip=False)
    assert same == run("dense", guarded=False, steps=4)[2]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == ["nothing more is sampled: RuntimeError: a tensor of?[31m an unknown kind"]
    assert not any(module._forward_hooks for module in model.modules())
    assert len(guard.record.readings) == 4


def test_samples_of_the_window_are_bounded_in_memory_and_the_first_and_the_last_are_kept(monkeypatch):
    monkeypatch.setattr("evengrad.guard._history.WINDOW_SAMPLED", 3000)
    _, guard, _ = run("dense", steps=20)
    sampled = [reading.step for reading in guard.record.readings if reading.weights]
    assert 2 <= len(sampled) < 20
    first = next(place for place, step in enumerate(sampled) if step != place)
    assert first >= 1
    assert sampled == [*range(first), *range(20 - len(sampled) + first, 20)]
    assert len(guard.record.readings) == 20


def test_layers_of_a_model_under_data_parallel_have_their_names():
    _, guard, _ = run("data parallel", steps=1)
    assert guard.record.readings[0].layers[0].name == "module.0"


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("order", ["wrapped before", "wrapped after", "in place"])
def test_a_compiled_model_shows_weights_to_auto_and_layers_to_a_number(order):
    def trained(every, guarded=True):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        call = torch.compile(model, backend="aot_eager") if order == "wrapped before" else model
        if order == "in place":
            model.compile(backend="aot_eager")
        guard = Guard(model, optimizer, sample_every_steps=every, tell=False) if guarded else None
        if order == "wrapped after":
            call = torch.compile(model, backend="aot_eager")
        losses = []
        for step in range(4):
            optimizer.zero_grad()
            x, y = batch(VECTORS, step)
            loss = nn.functional.cross_entropy(call(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            watched = any(module._forward_hooks for module in model.modules())
            assert not (guarded and every == "auto" and watched), "hooks would have it compiled again"
        torch.compiler.reset()
        return losses, [] if guard is None else guard.record.readings

    plain, _ = trained(None, guarded=False)
    losses, readings = trained("auto")
    assert losses == plain
    assert all(reading.weights and not reading.layers for reading in readings)
    losses, readings = trained(1)
    assert losses == plain  # this backend rounds as eager mode does
    assert all(reading.weights for reading in readings)
    assert readings[3].layers


@pytest.mark.parametrize("evaluation", ["none", "without no_grad", "with no_grad"])
def test_a_model_that_is_trained_in_evaluation_mode_shows_layers_and_ends_of_its_training(evaluation):
    torch.manual_seed(0)
    model = dense().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, tell=False)
    for step in range(3):
        if evaluation != "none":
            with torch.set_grad_enabled(evaluation == "without no_grad"):
                nn.functional.cross_entropy(model(torch.zeros(3, 5)), torch.zeros(3, dtype=torch.long))
        x, y = batch(VECTORS, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for reading in guard.record.readings:
        assert reading.ends.inputs[0].shape == (6, 5)
        assert reading.layers
        assert len({layer.name for layer in reading.layers}) == len(reading.layers)
        assert all(layer.grad_rms for layer in reading.layers)
        assert not any("#" in layer.name for layer in reading.layers)


def test_an_attack_in_evaluation_mode_is_not_the_training_that_follows_it():
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, tell=False)
    x, y = batch(VECTORS, 0)
    attacked = torch.zeros(4, 5, requires_grad=True)
    torch.autograd.grad(model.eval()(attacked).sum(), attacked)
    guard.loss(nn.functional.cross_entropy(model.train()(x), y)).backward()
    optimizer.step()
    (reading,) = guard.record.readings
    assert reading.ends.inputs[0].shape == (6, 5)
    assert all(layer.training and layer.grad_rms for layer in reading.layers)


def test_the_graph_of_an_evaluation_without_no_grad_is_let_go_when_the_next_forward_begins():
    model = dense().eval()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), tell=False)
    ends = guard._books.sampling._samplers.ends
    model(torch.zeros(3, 5))
    assert ends._held is not None
    held = []
    handle = model.register_forward_pre_hook(lambda module, args: held.append(ends._held))
    model(torch.zeros(3, 5))
    handle.remove()
    assert held == [None]
