"""A sampler is never in the way: not of the run, the model, its copies, compilers and transforms."""

import copy
import io
import random

import pytest
import torch
from sampled_models import CLOSE, MODELS, Tied, exact, is_close, sampled_once, vectors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.probe import Sampler


def trained(name, *, sampled=True, autocast=False, steps=4):
    """Train a few steps, with an evaluation after each; give all that a step leaves behind."""
    torch.manual_seed(0)
    make, data = MODELS[name]
    model, left = make(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = Sampler(model)
    for step in range(steps):
        if sampled and step % 2:
            sampler.arm()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(data()).square().mean()
        loss.backward()
        if sampler.armed:
            readings = sampler.readings(sampler.packed().tolist())
            sampler.disarm()
            assert readings
        left += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            left.append(model.eval()(data()))
        model.train()
    return [*left, *model.state_dict().values(), torch.get_rng_state(), torch.tensor(random.getstate()[1])]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_sampled_run_is_equal_to_the_bit(name, autocast):
    plain = trained(name, sampled=False, autocast=autocast)
    sampled = trained(name, autocast=autocast)
    assert len(plain) == len(sampled)
    assert all(torch.equal(one, other) for one, other in zip(plain, sampled, strict=True))


class Waits(TorchDispatchMode):
    """Fails on what would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), f"{function} waits for the device"
        assert "nonzero" not in str(function)
        return function(*args, **(kwargs or {}))


def test_packing_does_not_wait_and_takes_few_operations_however_many_layers():
    class Counting(Waits):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return super().__torch_dispatch__(function, types, args, kwargs)

    counts = []
    for depth in (3, 90):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)), nn.Tanh())
        sampler = Sampler(model)
        sampled_once(model, torch.sum, vectors(), sampler)
        sampler.arm()
        with Waits():
            model(vectors()).sum().backward()
            with Counting() as mode:
                sampler.packed()
        counts.append(mode.count)
    assert counts[0] == counts[1] < 60


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_nothing_is_attached_before_and_after():
    model = Tied()

    class Gives(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.weight

    model.gives = Gives()
    model.register_forward_hook(lambda module, args, out: out * module.gives(out))
    before = hooks(model)
    sampler = Sampler(model)
    assert hooks(model) == before
    sampler.arm()
    sampler.arm()
    assert sum(hooks(model)) > sum(before) + 4
    model(vectors()).sum().backward()
    sampler.disarm()
    assert hooks(model) == before
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    sampler.disarm()
    assert not sampler.armed


def test_copies_and_pickles_of_an_armed_model_have_hooks_that_do_nothing():
    model = nn.Sequential(nn.Linear(6, 6))
    sampler = Sampler(model)
    sampler.arm()
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied(vectors()).sum().backward()
    torch.load(file, weights_only=False)(vectors()).sum().backward()
    assert sampler.readings(sampler.packed().tolist()) == ()
    assert sampler.packed().shape == (0,)


def transformed():
    """Give a model, its loss as a function of parameters and input, and the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def loss(values, x):
        return torch.func.functional_call(model, values, (x,)).sum()

    return model, loss, {name: value.detach() for name, value in model.named_parameters()}


def test_calls_under_vmap_are_left_alone():
    model, loss, parameters = transformed()
    x, sampler = vectors(), Sampler(model)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    wanted = each(parameters, x)
    for _ in range(2):
        sampler.arm()
        found = each(parameters, x)
        each(parameters, x)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert sampler.readings(sampler.packed().tolist()) == ()
        assert sampler.layout.size == 9 * 2  # a row for each of the two layers, used again and again
    few = x[:2]  # as wide as the rows that were handed back
    wanted = exact(model, torch.sum, few)
    found = sampled_once(model, torch.sum, few, sampler)
    assert all(is_close(one, other, **CLOSE) for one, other in zip(found, wanted, strict=True))


def test_a_training_by_torch_func_is_read_as_any_other():
    model, loss, parameters = transformed()
    x, sampler = vectors(), Sampler(model)
    wanted = torch.func.grad(loss)(parameters, x)
    sampler.arm()
    found = torch.func.grad(loss)(parameters, x)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    layers = sampler.readings(sampler.packed().tolist())
    sampler.disarm()
    assert all(is_close(one, other, **CLOSE) for one, other in zip(layers, exact(model, torch.sum, x), strict=True))
