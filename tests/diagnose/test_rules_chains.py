"""Rules of depth follow the graph: branches are judged each by itself, and gates are no saturated units."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of, rules
from evengrad.diagnose._chains import before, chains
from evengrad.nouns import LayerReading, Reading, Record
from evengrad.probe import probe

BY_CODE = {rule.code: rule for rule in rules.ALL}


def layer(name, grad, *after, activation=1.0, **settings):
    settings = {"kind": "Linear", "numel": 4, "weighted": True} | settings
    return LayerReading(
        name=name, grad_rms=None if grad is None else grad / 2, activation_rms=activation, after=after, **settings
    )


def row(prefix, *grads, after=(), activations=None):
    found = []
    for number, grad in enumerate(grads):
        activation = 1.0 if activations is None else activations[number]
        found.append(layer(f"{prefix}{number}", grad, *after, activation=activation))
        after = (f"{prefix}{number}",)
    return found


def sign(code, layers):
    reading = Reading(layers=tuple(layers))
    return BY_CODE[code].sign(reading, Record(readings=(reading,)))


def unknown(layers):
    return [replace(one, after=None) for one in layers]


def names(layers):
    return [[one.name for one in chain] for chain in chains(layers)]


WEAK_FIRST = [*row("a", 1e-4, 1e-4, 1e-4, 1e-4), *row("b", 1.0, 1.0, 1.0, 1.0)]
WEAK_LAST = [*row("b", 1.0, 1.0, 1.0, 1.0), *row("a", 1e-4, 1e-4, 1e-4, 1e-4)]


@pytest.mark.parametrize(("layers", "code"), [(WEAK_FIRST, "EG101"), (WEAK_LAST, "EG102")])
def test_two_towers_are_two_chains_and_one_where_the_graph_is_not_known(layers, code):
    assert not sign(code, layers).speaks
    assert sign(code, unknown(layers)).speaks


def test_the_trunk_belongs_to_the_head_that_brings_the_larger_gradient():
    trunk, main = row("t", 1.0, 1.0, 1.0), layer("main", 1.0, "t2")
    weak = row("w", 1e-4, 1e-4, 1e-4, 1e-4, after=("t2",))
    for layers in ([*trunk, main, *weak], [*trunk, *weak, main]):
        assert sorted(names(layers)) == [["t0", "t1", "t2", "main"], ["w0", "w1", "w2", "w3"]]
        assert not sign("EG101", layers).speaks
        assert not sign("EG102", layers).speaks
    assert sign("EG102", unknown([*trunk, main, *weak])).speaks


def test_a_weak_branch_that_vanishes_within_itself_is_told():
    weak = row("w", 1e-9, 1e-8, 1e-6, 1e-4, after=("t2",))
    seen = sign("EG101", [*row("t", 1.0, 1.0, 1.0), layer("main", 1.0, "t2"), *weak])
    assert seen.speaks
    assert seen.where == ("w0", "w1")


def test_of_several_chains_the_worst_is_told():
    slow, steep = row("a", 1e-3, 1e-2, 1e-1, 1.1), row("b", 1e-9, 1e-6, 1e-3, 1.0)
    for layers in ([*slow, *steep], [*steep, *slow]):
        seen = sign("EG101", layers)
        assert seen.decades == pytest.approx(9.0)
        assert seen.where[0] == "b0"


def test_branches_that_meet_again_are_one_chain():
    layers = [*row("t", 1.0), layer("q", 1e-6, "t0"), layer("k", 1.0, "t0"), layer("out", 1.0, "q", "k")]
    assert names(layers) == [["t0", "q", "k", "out"]]


def test_layers_are_followed_through_what_has_no_weights():
    relu = LayerReading(name="relu", kind="ReLU", after=("a0",))
    assert names([*row("a", 1.0), relu, layer("b", 1.0, "relu"), layer("c", 1.0)]) == [["a0", "b"], ["c"]]


def test_frozen_layers_outside_of_the_graph_are_put_to_the_largest_gradient():
    frozen = replace(layer("frozen", None), after=None)
    assert sorted(names([frozen, *row("a", 0.1), *row("b", 1.0)])) == [["a0"], ["frozen", "b0"]]


def test_names_that_lead_nowhere_and_in_circles_are_passed_over():
    layers = [layer("a", 1.0, "b", "a", "nobody"), layer("b", 1.0, "a")]
    assert names(layers) == [["a", "b"]]


def test_a_module_called_in_two_chains_learns_from_the_call_that_is_reached_best():
    layers = row("a", 1e-6, 1e-4, 1e-2, 1.0)
    assert sign("EG101", layers).speaks
    assert not sign("EG101", [*layers, layer("a0#2", 1.0)]).speaks


def test_activations_grow_along_a_chain_only():
    small = row("a", 1.0, 1.0, 1.0, 1.0, activations=[1e-3] * 4)
    large = row("b", 1.0, 1.0, 1.0, 1.0, activations=[10.0] * 4)
    assert not sign("EG102", [*small, *large]).speaks
    assert sign("EG102", unknown([*small, *large])).speaks
    assert sign("EG102", row("a", 1.0, 1.0, 1.0, 1.0, activations=[1.0, 20.0, 400.0, 8000.0])).speaks


def test_before_an_overflow_only_what_leads_to_it_is_looked_at():
    layers = [*row("a", 1.0, 1.0), *row("b", 1.0, 1.0)]
    assert [one.name for one in before(layers, 3)] == ["b0"]
    assert [one.name for one in before(unknown(layers), 3)] == ["a0", "a1", "b0"]


@pytest.mark.parametrize(("gate", "speaks"), [(True, None), (False, True)])
def test_a_gate_may_saturate(gate, speaks):
    shut = LayerReading(name="s", kind="sigmoid", nonlinearity="sigmoid", saturated_frac=1.0, gate=gate)
    seen = sign("EG302", [*row("a", 1.0), shut, *row("b", 1.0)])
    assert (seen.speaks if seen else None) == speaks


# --- real networks ---


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mlp(*sizes, act=nn.ReLU):
    parts = [part for one, two in pairwise(sizes) for part in (nn.Linear(one, two), act())]
    net = nn.Sequential(*parts[:-1])
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    return net


class Parts(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        self.parts = nn.ModuleDict(parts)

    def forward(self, x):
        return self.run(self.parts, x)


def codes(model, loss):
    data = torch.randn(64, 16), torch.randint(4, (64,))
    return {one.code for one in findings_of(probe(model, loss, data))}


def weighed(main, weak):
    def loss(output, target):
        return functional.cross_entropy(output[main], target) + 1e-5 * functional.mse_loss(
            output[weak], torch.ones_like(output[weak])
        )

    return loss


def heads(p, x):
    h = p["trunk"](x).relu()
    return p["main"](h), p["aux"](h)


def heads_aux_first(p, x):
    h = p["trunk"](x).relu()
    aux = p["aux"](h)
    return p["main"](h), aux


DEPTH = {"EG101", "EG102", "EG105", "EG402"}


@pytest.mark.parametrize("forward", [heads, heads_aux_first])
def test_an_auxiliary_head_with_a_loss_of_little_weight_is_healthy(forward):
    model = Parts(forward, trunk=mlp(16, 32, 32, 32), main=mlp(32, 4), aux=mlp(32, 32, 32, 16))
    assert not codes(model, weighed(0, 1)) & DEPTH


@pytest.mark.parametrize("main", [0, 1])
def test_two_towers_of_unequal_losses_are_healthy(main):
    model = Parts(lambda p, x: (p["a"](x), p["b"](x)), a=mlp(16, 32, 32, 32, 4), b=mlp(16, 32, 32, 32, 4))
    assert not codes(model, weighed(main, 1 - main)) & DEPTH


@pytest.mark.parametrize("main", [0, 1])
def test_a_model_called_twice_with_unequal_losses_is_healthy(main):
    model = Parts(lambda p, x: (p["a"](x), p["a"](x + 0.1)), a=mlp(16, 32, 32, 32, 4))
    assert not codes(model, weighed(main, 1 - main)) & DEPTH


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.f = nn.Linear(16, 16)
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x):
        return x + torch.sigmoid(self.gate) * self.f(x).relu()


def test_branches_behind_a_gate_that_is_nearly_shut_do_not_lose_signal_with_depth():
    model = nn.Sequential(*(Gated(-6.0) for _ in range(12)), nn.Linear(16, 4))
    record = probe(model, functional.cross_entropy, (torch.randn(64, 16), torch.randint(4, (64,))))
    assert not BY_CODE["EG402"].sign(record.readings[0], record).speaks


def test_small_weights_without_gates_do():
    model = mlp(16, *[16] * 12, 4)
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    record = probe(model, functional.cross_entropy, (torch.randn(64, 16), torch.randint(4, (64,))))
    assert BY_CODE["EG402"].sign(record.readings[0], record).speaks


def test_a_deep_sigmoid_net_still_vanishes_and_in_one_of_two_towers_too():
    deep = mlp(16, *[32] * 9, 4, act=nn.Sigmoid)
    assert "EG101" in codes(deep, functional.cross_entropy)
    towers = Parts(lambda p, x: (p["a"](x), p["b"](x)), a=mlp(16, 32, 32, 4), b=deep)
    assert "EG101" in codes(towers, weighed(1, 0))
    assert "EG101" in codes(towers, weighed(0, 1))


def test_a_net_of_large_weights_still_explodes_below_two_heads():
    trunk = mlp(16, *[32] * 8)
    for part in trunk:
        if isinstance(part, nn.Linear):
            part.weight.data *= 4
    assert "EG102" in codes(Parts(heads, trunk=trunk, main=mlp(32, 4), aux=mlp(32, 4)), weighed(0, 1))
