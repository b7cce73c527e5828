"""Which calls come before which, and which only gate others: by both probes, on models whose structure is known."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.probe import Sampler, probe
from evengrad.probe._call_graph import MOST_NODES, CallGraph


class Model(nn.Module):
    """A model of named layers and a forward that is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def total(output, target=None):
    return sum(one.sum() for one in output) if isinstance(output, tuple) else output.sum()


def exact(model, data):
    return probe(model, total, (data, data)).readings[0].layers


def sampled(model, data):
    sampler = Sampler(model)
    sampler.arm()
    total(model(data)).backward()
    numbers = sampler.packed()
    sampler.disarm()
    return sampler.readings(numbers.tolist())


def linear(inputs=4, outputs=4):
    return nn.Linear(inputs, outputs)


def u_net(m, x):
    first = m.down(x)
    second = m.bottom(first)
    return m.head(torch.cat([m.up(second), first], 1))


def two_heads(m, x):
    x = m.a(x)
    return m.one(x), m.two(x)


def residual(m, x):
    x = m.e(x) + m.a(m.e2(x))
    return m.c(x + m.b(x) + 0 * x)


def in_place(m, x):
    return m.b(m.a(x).relu_().view(2, -1).t().reshape(-1, 4))


def highway(m, x):
    x = m.a(x)
    gate = torch.sigmoid(m.gate(x))
    return m.b(gate * m.f(x) + (1 - gate) * x)


MODELS = {
    "chain": (nn.Sequential(linear(), nn.Tanh(), linear()), {"0": (), "1": ("0",), "2": ("1",)}),
    "towers": (
        Model(lambda m, x: (m.b(m.a(x)), m.d(m.c(x))), a=linear(), b=linear(), c=linear(), d=linear()),
        {"a": (), "b": ("a",), "c": (), "d": ("c",)},
    ),
    "two heads": (
        Model(two_heads, a=linear(), one=linear(), two=linear()),
        {"a": (), "one": ("a",), "two": ("a",)},
    ),
    "called twice": (
        Model(lambda m, x: (m.b(m.a(x)), m.b(m.a(x + 1))), a=linear(), b=linear()),
        {"a": (), "b": ("a",), "a#2": (), "b#2": ("a#2",)},
    ),
    "siamese": (
        Model(lambda m, x: m.b(m.a(x) - m.a(2 * x)), a=linear(), b=linear()),
        {"a": (), "a#2": (), "b": ("a", "a#2")},
    ),
    "u-net": (
        Model(u_net, down=linear(), bottom=linear(), up=linear(), head=linear(8, 2)),
        {"down": (), "bottom": ("down",), "up": ("bottom",), "head": ("up",)},
    ),
    "residual": (
        Model(
            residual,
            e=linear(), e2=linear(), a=linear(), b=linear(), c=linear(),
        ),
        {"e": (), "e2": (), "a": ("e2",), "b": ("e", "a"), "c": ("b",)},
    ),
    "in place": (
        Model(in_place, a=linear(), b=linear()),
        {"a": (), "relu()": ("a",), "b": ("relu()",)},
    ),
    "another output": (
        Model(lambda m, x: m.b(m.rnn(m.a(x)[None])[1][0][-1]), a=linear(), rnn=nn.LSTM(4, 4), b=linear()),
        {"a": (), "rnn": ("a",), "b": ("rnn",)},
    ),
    "highway": (
        Model(highway, a=linear(), gate=linear(), f=linear(), b=linear()),
        {"a": (), "gate": ("a",), "sigmoid()": ("gate",), "f": ("a",), "b": ("sigmoid()", "f")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("read", [exact, sampled])
@pytest.mark.parametrize("name", MODELS)
def test_each_call_knows_those_directly_before_it(name, read):
    model, after = MODELS[name]
    assert {layer.name: layer.after for layer in read(model, torch.randn(6, 4))} == after


def gates(model, read):
    return {layer.name for layer in read(model, torch.randn(6, 4)) if layer.gate}


def highway_at_the_input(m, x):
    gate = torch.sigmoid(m.gate(x))
    return m.b(gate * m.a(x) + (1 - gate) * x)


def gate_and_feature(m, x):
    gate = torch.sigmoid(m.gate(x))
    return m.b(gate * m.a(x)) + m.b(gate)


def squeeze_and_excite(m, x):
    h = functional.relu(m.a(x)).reshape(6, 4, 1)
    return m.b((h * torch.sigmoid(m.gate(h.mean(2)))[..., None]).flatten(1))


@pytest.mark.parametrize("read", [exact, sampled])
@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (highway, {"sigmoid()"}),
        (squeeze_and_excite, {"sigmoid()"}),
        (lambda m, x: m.b(torch.sigmoid(m.gate(x)) * m.a(x)), {"sigmoid()"}),
        # where the input is no part of the graph, what is left of it is only multiplied with a constant
        (highway_at_the_input, {"sigmoid()"}),
        (lambda m, x: m.b(torch.sigmoid(m.gate(x))), set()),
        (lambda m, x: m.b(2 * torch.sigmoid(m.gate(x)) - 1), set()),
        (lambda m, x: m.b(functional.dropout(torch.sigmoid(m.gate(x)), 0.5)), set()),
        (lambda m, x: m.b(m.a(x) + torch.tanh(m.gate(x))), set()),
        (gate_and_feature, set()),
        (lambda m, x: m.b(functional.relu(m.gate(x)) * m.a(x)), set()),
    ],
)
def test_only_what_others_are_multiplied_with_is_a_gate(forward, expected, read):
    assert gates(Model(forward, a=linear(), b=linear(), gate=linear(), f=linear()), read) == expected


def test_a_tanh_with_a_scale_that_is_trained_is_no_gate():
    model = Model(lambda m, x: m.b(torch.tanh(m.a(x)) * m.scale), a=linear(), b=linear())
    model.scale = nn.Parameter(torch.ones(4))
    assert gates(model, exact) == gates(model, sampled) == set()


def test_what_is_outside_of_the_graph_is_before_nothing_and_after_nobody_knows_what():
    model = nn.Sequential(linear(), linear(), linear())
    model[0].requires_grad_(False)
    for read in (exact, sampled):
        assert [layer.after for layer in read(model, torch.randn(6, 4))] == [None, (), ("1",)]


def test_a_forward_of_too_many_operations_is_not_looked_at():
    value = torch.ones(1, requires_grad=True)
    for _ in range(MOST_NODES + 10):
        value = value + 1
    graph = CallGraph()
    numbers = [graph.add([value], saturates=False), graph.add([value * 2], saturates=False)]
    assert graph.after(numbers) == [None, None]


def test_what_an_earlier_round_has_marked_is_no_call_of_this_one():
    first, second = CallGraph(), CallGraph()
    value = torch.ones(1, requires_grad=True) * 2
    first.add([value], saturates=False)
    later = value * 3
    assert second.after([second.add([later], saturates=False), second.add([later * 2], saturates=False)]) == [(), (0,)]


def test_a_long_residual_net_is_looked_at_once_and_not_once_for_each_layer():
    graph, value, numbers = CallGraph(), torch.ones(1, requires_grad=True) * 1, []
    for _ in range(1000):
        branch = value * 2
        numbers.append(graph.add([branch], saturates=False))
        value = value + branch
    assert graph.after(numbers) == [(), *((place,) for place in range(999))]
    assert MOST_NODES - graph._left < 5000


class Kept:
    """Something of a graph whose end can be seen."""


class Keep(torch.autograd.Function):
    seen: list = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        ctx.kept = Kept()
        Keep.seen.append(weakref.ref(ctx.kept))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_no_graph_is_kept_alive_by_what_is_known_of_it():
    model = Model(lambda m, x: m.b(torch.sigmoid(Keep.apply(m.a(x)))), a=linear(), b=linear())
    sampler = Sampler(model)
    sampler.arm()
    output = model(torch.randn(6, 4))
    (kept,) = Keep.seen
    assert kept() is not None
    del output
    gc.collect()
    assert kept() is None
    sampler.disarm()
