"""A weight sampler is never in the way: not of the run, the device, memory or copies."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.probe import WeightSampler


def trained(*, sampled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 80, 3), nn.BatchNorm2d(80), nn.Flatten(), nn.Linear(80 * 9, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    sampler, left = WeightSampler(dict(model.named_parameters()), model), []
    for _ in range(4):
        loss = model(torch.randn(6, 3, 5, 5)).square().mean()
        loss.backward()
        if sampled:
            sampler.before()
        optimizer.step()
        if sampled:
            sampler.after()
            assert len(sampler.readings(sampler.packed().tolist())) == 6
        optimizer.zero_grad()
        left.append(loss.detach())
    return [*left, *model.state_dict().values(), torch.get_rng_state()]


def test_a_training_that_is_sampled_is_the_same_to_the_bit():
    assert all(map(torch.equal, trained(sampled=True), trained(sampled=False)))


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 100)).square().sum().backward()
    sampler = WeightSampler(dict(model.named_parameters()))
    with NoWaiting():
        sampler.before(torch.tensor(8.0))
        sampler.after()
        numbers = sampler.packed()
    assert len(sampler.readings(numbers.tolist())) == 6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_of_a_large_weight_no_more_than_the_sample_is_copied(layout):
    class Measuring(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if not func.is_view and isinstance(result, torch.Tensor):
                Measuring.most = max(Measuring.most, result.numel())
            return result

    layer = nn.Conv2d(256, 256, 3, bias=False).to(memory_format=layout)
    layer.weight.grad = torch.ones_like(layer.weight)
    sampler = WeightSampler(dict(layer.named_parameters()), layer)
    sampler.before()
    with Measuring():
        sampler.before()
        sampler.after()
        sampler.packed()
    assert 4096 <= Measuring.most <= 4 * 4096


def test_many_tensors_of_few_shapes_cost_few_operations():
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                Counting.count += 1
            return func(*args, **(kwargs or {}))

    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(500)))
    for parameter in layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    sampler = WeightSampler(dict(layers.named_parameters()))
    sampler.before()
    with Counting():
        sampler.before()
        sampler.after()
        sampler.packed()
    assert Counting.count < 150


def test_a_sampler_keeps_no_gradient_alive_and_can_be_copied_with_its_model():
    layer = nn.Linear(3, 2)
    sampler = WeightSampler(dict(layer.named_parameters()))
    layer(torch.ones(1, 3)).sum().backward()
    sampler.before()
    gone = weakref.ref(layer.weight.grad)
    layer.zero_grad()
    gc.collect()
    assert gone() is None
    assert copy.deepcopy(sampler).readings(sampler.packed().tolist())[0].grad_rms is not None
