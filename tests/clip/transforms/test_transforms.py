"""What every transform promises, over every member of ALL."""

import io
import random

import numpy as np
import pytest
import torch
from torch import nn

from evengrad.clip.transforms import ALL, ClampWeights, MaxNorm, Sign

WEIGHT_SIDE = (ClampWeights, MaxNorm)
ADAMS = [{"fused": True}, {"foreach": True}, {"foreach": False}]


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def adamw(model, lr=0.01, **settings):
    return torch.optim.AdamW(model.parameters(), lr=lr, **settings)


def fill(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)


@torch.no_grad()
def stepped(transform, targets, memory):
    """Do what a guard does in a step: before, the optimizer's own, after; learning rates are put back."""
    rates = [group["lr"] for group in targets[0].optimizer.param_groups]
    memory = transform.before_(targets, memory)
    targets[0].optimizer.step()
    memory = transform.after_(targets, memory)
    for group, rate in zip(targets[0].optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return memory


def bits(tensors):
    return [tensor.detach().reshape(-1).view(torch.uint8).tolist() for tensor in tensors]


def copied(memory):
    return {name: tensor.clone() for name, tensor in memory.items()}


def same(memory, copy):
    return memory.keys() == copy.keys() and all(torch.equal(memory[name], copy[name]) for name in copy)


def test_every_transform_has_an_example_here(examples):
    assert {type(example) for example in examples} == set(ALL)


def test_memory_that_comes_in_is_left_as_it_was(transform, targets_of):
    model = small_model()
    targets = targets_of(model, adamw(model))
    memory = transform.init(targets)
    for seed in range(8):
        fill(model, seed)
        copy = copied(memory)
        with torch.no_grad():
            following = transform.before_(targets, memory)
            assert same(memory, copy)
            copy = copied(following)
            targets[0].optimizer.step()
            memory = transform.after_(targets, following)
        assert same(following, copy)
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in memory.items())


@pytest.mark.parametrize("settings", ADAMS, ids=str)
def test_a_saved_run_goes_on_equal_to_the_bit(transform, settings, targets_of):
    def started():
        model = small_model()
        targets = targets_of(model, adamw(model, **settings))
        return model, targets, transform.init(targets)

    model, targets, memory = started()
    for seed in range(7):
        fill(model, seed, scale=10.0 ** (seed % 3))
        memory = stepped(transform, targets, memory)
        if seed == 3:
            file = io.BytesIO()
            torch.save((memory, model.state_dict(), targets[0].optimizer.state_dict()), file)
    file.seek(0)
    other, others, _ = started()
    loaded, weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    others[0].optimizer.load_state_dict(state)
    others = targets_of(other, others[0].optimizer)
    for seed in range(4, 7):
        fill(other, seed, scale=10.0 ** (seed % 3))
        loaded = stepped(transform, others, loaded)
    assert bits(other.parameters()) == bits(model.parameters())
    assert same(loaded, memory)


def test_what_has_no_gradient_is_passed_over(transform, targets_of):
    model = small_model()
    targets = targets_of(model, adamw(model))
    memory = transform.init(targets)
    for seed in range(8):
        fill(model, seed)
        for parameter in list(model.parameters())[::2] if seed < 7 else model.parameters():
            parameter.grad = None
        memory = stepped(transform, targets, memory)
        assert all(parameter.grad is None for parameter in list(model.parameters())[::2])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_no_target_at_all_is_no_error(transform):
    with torch.no_grad():
        memory = transform.after_([], transform.before_([], transform.init([])))
    assert set(memory) <= {"steps"}


def test_parameters_may_come_late(transform, targets_of):
    model = small_model()
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.01)
    targets = targets_of(model, optimizer)
    memory = transform.init(targets)
    for seed in range(3):
        fill(model, seed)
        memory = stepped(transform, targets, memory)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    targets = targets_of(model, optimizer)
    known = memory
    memory = transform.init(targets) | known
    before = model[4].weight.detach().clone()
    for seed in range(3, 8):
        fill(model, seed)
        memory = stepped(transform, targets, memory)
    assert not torch.equal(model[4].weight, before)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_parameter_that_the_memory_does_not_know_is_taken_as_new(transform, targets_of):
    model = small_model()
    targets = targets_of(model, adamw(model))
    fill(model, 0)
    memory = stepped(transform, targets, transform.init(targets[:1]))
    assert memory.keys() >= transform.init(targets).keys()


@pytest.mark.parametrize("settings", ADAMS, ids=str)
def test_zero_gradients_and_zero_weights_neither_freeze_nor_break(transform, settings, targets_of):
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    targets = targets_of(model, adamw(model, **settings))
    memory = transform.init(targets)
    for _ in range(9):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        memory = stepped(transform, targets, memory)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    for _ in range(3):  # ramps, that centring leaves something of
        for parameter in model.parameters():
            parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).sub(0.3).view(parameter.shape)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        memory = stepped(transform, targets, memory)
        for parameter, old in zip(model.parameters(), before, strict=True):
            moved = float((parameter.detach() - old).abs().max())
            assert moved > 1e-5 or isinstance(transform, WEIGHT_SIDE)
            assert bool(parameter.isfinite().all())


def test_the_global_random_state_is_not_touched(transform, targets_of):
    model = small_model()
    targets = targets_of(model, adamw(model))
    fill(model, 0)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    stepped(transform, targets, transform.init(targets))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]


@pytest.mark.parametrize("settings", ADAMS, ids=str)
def test_a_small_model_learns_with_it(transform, settings, targets_of):
    model = small_model()
    lr = 0.003 if isinstance(transform, Sign) else 0.01
    targets = targets_of(model, adamw(model, lr=lr, **settings))
    generator = torch.Generator().manual_seed(1)
    inputs, wanted = torch.randn(64, 2, 6, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    memory, losses = transform.init(targets), []
    for _ in range(40):
        targets[0].optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), wanted)
        loss.backward()
        memory = stepped(transform, targets, memory)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_tied_parameter_is_changed_once(transform, targets_of):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.tokens.weight

    model = Tied()
    targets = targets_of(model, adamw(model))
    assert [target.name for target in targets] == ["tokens.weight"]
    model.tokens.weight.grad = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    memory = stepped(transform, targets, transform.init(targets))
    assert sum(name.endswith("tokens.weight") for name in memory) <= 1
    assert bool(model.head.weight.isfinite().all())
