"""Numbers of a sampled step against float64, and what models give and how they are trained."""

import copy
import dataclasses
from collections import OrderedDict, UserDict

import pytest
import torch
from sampled_models import sampled_once, vectors
from torch import nn
from torch.nn import functional

from evengrad.probe import Sampler, probe

CLOSE = {"rel": 1e-5, "abs": 1e-7}


def test_every_number_of_a_small_network_is_what_float64_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    model[2].weight.data *= 8
    x, twin = vectors(), copy.deepcopy(model).double()
    h, values = x.double(), []
    for module in twin:
        h = module(h)
        h.retain_grad()
        values.append(h)
    h.square().sum().backward()
    exact = probe(model, lambda output, _: output.square().sum(), (x, torch.zeros(1))).readings[0].layers
    for layers in (exact, sampled_once(model, lambda out: out.square().sum(), x)):
        for layer, value in zip(layers, values, strict=True):
            assert layer.activation_rms == pytest.approx(value.square().mean().sqrt().item(), **CLOSE)
            assert layer.activation_mean == pytest.approx(value.mean().item(), **CLOSE)
            assert layer.activation_absmax == pytest.approx(value.abs().max().item(), **CLOSE)
            assert layer.zero_frac == pytest.approx((value == 0).double().mean().item())
            assert layer.grad_rms == pytest.approx(value.grad.square().mean().sqrt().item(), **CLOSE)
        assert layers[1].dead_frac == pytest.approx((values[1] == 0).all(0).double().mean().item())
        assert layers[3].saturated_frac == pytest.approx((1 - values[3] ** 2 < 0.05).double().mean().item())
        assert layers[3].saturated_frac > 0


@pytest.mark.parametrize("size", [1e38, 1e-38])
def test_a_mean_neither_overflows_nor_vanishes(size):
    values = torch.tensor([3.0, -1.0, 3.0, 3.0, float("nan"), float("inf")]) * size
    layer = sampled_once(nn.Sequential(nn.Identity()), lambda out: out[:1].sum(), values.requires_grad_())[0]
    exact = probe(Parameter(values.detach()), lambda output, _: output[:1].sum(), (torch.ones(1), torch.ones(1)))
    for one in (layer, exact.readings[0].layers[0]):
        assert one.activation_mean == pytest.approx(2 * size, rel=1e-5)
        assert one.activation_absmax == pytest.approx(3 * size, rel=1e-5)


class Parameter(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values)

    def forward(self, x):
        return self.weight * x


def test_batches_that_a_batch_norm_has_tracked_are_counted_and_its_mode_is_told():
    model = nn.Sequential(
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.BatchNorm1d(6).eval(),
        nn.Unflatten(1, (1, 6)),
        nn.InstanceNorm1d(1, track_running_stats=True),
    )
    sampler = Sampler(model)
    for step in range(1, 4):
        exact = probe(model, lambda output, _: output.sum(), (vectors(), torch.zeros(1))).readings[0].layers
        sampled = sampled_once(model, torch.sum, vectors(), sampler)
        for layers in (exact, sampled):
            assert [layer.tracked for layer in layers] == [None, step, None, 0, None, None]
            assert [layer.training for layer in layers] == [True, True, True, False, True, True]
    model[1].track_running_stats = False
    assert sampled_once(model, torch.sum, vectors())[1].tracked is None
    assert not any(layer.training for layer in probe(model.eval(), _sum, (vectors(), vectors())).readings[0].layers)


def _sum(output, _):
    return output.sum()


@dataclasses.dataclass
class Answer:
    label: str
    logits: torch.Tensor
    more: object = None


class Named(OrderedDict):
    """As the outputs of transformers are: a mapping that is also a dataclass of sorts."""

    @property
    def logits(self):
        return self["logits"]


GIVEN = {
    "a tuple": lambda h: (3, h),
    "a list in a tuple": lambda h: ("x", [h]),
    "a dict": lambda h: {"index": torch.arange(3), "logits": h},
    "an ordered dict": lambda h: Named(logits=h),
    "a mapping": lambda h: UserDict(logits=h),
    "a dataclass": lambda h: Answer("x", h),
    "a dataclass in a tuple": lambda h: (1, Answer("x", h)),
}


class Gives(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.fc, self.scale, self.give = nn.Linear(6, 6), nn.Parameter(torch.ones(6)), give

    def forward(self, x):
        return self.give(self.fc(x) * self.scale)


@pytest.mark.parametrize("kind", GIVEN)
def test_outputs_of_every_shape_are_read(kind):
    def total(output):
        return next(_tensors(output)).sum()

    model, x = Gives(GIVEN[kind]), vectors()
    exact = probe(model, lambda output, _: total(output), (x, torch.zeros(1))).readings[0].layers
    for layers in (exact, sampled_once(model, total, x)):
        assert [layer.name for layer in layers] == ["fc", "(model)"]
        assert layers[1].numel == 54
        assert layers[1].grad_rms == pytest.approx(1.0)


def _tensors(output):
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Answer):
        yield output.logits
    elif isinstance(output, dict | UserDict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def test_an_output_that_refers_to_itself_ends():
    def give(h):
        answer = Answer("x", torch.arange(3))
        answer.more = [answer]
        return h, answer

    model = Gives(give)
    assert [layer.name for layer in sampled_once(model, lambda output: output[0].sum(), vectors())] == ["fc", "(model)"]


def test_a_generator_is_not_used_up():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return (functional.relu(self.fc(x + part)) for part in range(3))

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = Parts()

        def forward(self, x):
            return sum(self.parts(x))

    layers = sampled_once(Sums(), torch.sum, vectors())
    assert [layer.name for layer in layers] == [
        "parts.fc",
        "relu()",
        "parts.fc#2",
        "relu()#2",
        "parts.fc#3",
        "relu()#3",
    ]
    assert all(layer.grad_rms for layer in layers)


def test_the_first_gradient_of_a_round_is_told_once():
    told = []
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    sampler = Sampler(model)
    assert sampler.on_backward is None
    sampler.on_backward = lambda: told.append([parameter.grad is None for parameter in model.parameters()])
    for _ in range(2):
        model.zero_grad()
        sampler.arm()
        with torch.no_grad():
            model(vectors())
        loss = model(vectors()).sum()
        assert len(told) in {0, 1}
        loss.backward(retain_graph=True)
        loss.backward()
        model(vectors()).sum().backward()
        sampler.packed()
        sampler.disarm()
        model(vectors()).sum().backward()
    assert told == [[True] * 4] * 2


def test_a_scaled_loss_in_half_precision_is_read_unscaled():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LSTM(6, 6)), vectors()
    wanted = sampled_once(model, lambda out: out[0].float().sum(), x)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sampler = Sampler(model)
    sampler.arm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x)[0].float().sum()
    scaler.scale(loss).backward()
    found = sampler.readings(sampler.packed().tolist(), loss_scale=scaler.get_scale())
    assert [layer.grad_rms for layer in found] == pytest.approx([layer.grad_rms for layer in wanted], rel=0.05)
    assert found[2].time_grad_rms == pytest.approx(wanted[2].time_grad_rms, rel=0.1)
    assert found[2].gate_mean == pytest.approx(wanted[2].gate_mean, rel=0.02)


def test_several_losses_count_together_where_they_come_together():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6)), vectors()
    sampler = Sampler(model)
    sampler.arm()
    out = model(x)
    (out.sum() + 3 * out.sum()).backward()
    assert sampler.readings(sampler.packed().tolist())[0].grad_rms == pytest.approx(4.0)
