"""Weights as they are drawn, told from trained ones, and watched whether anything moves them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from evengrad.probe import Untouched, setup_of, those
from evengrad.probe._untrained import as_drawn

INITS = {
    "he": nn.init.kaiming_normal_,
    "he uniform": nn.init.kaiming_uniform_,
    "glorot": nn.init.xavier_normal_,
    "glorot for tanh": lambda weight: nn.init.xavier_uniform_(weight, gain=5 / 3),
    "lecun": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear"),
    "gpt": lambda weight: nn.init.normal_(weight, std=0.02),
    "torch": lambda weight: nn.init.kaiming_uniform_(weight, a=5**0.5),
}
OF_TORCH = {
    "Linear": lambda: nn.Linear(64, 32),
    "Conv2d": lambda: nn.Conv2d(3, 16, 3),
    "depthwise": lambda: nn.Conv2d(64, 64, 3, groups=64),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 8, 3),
    "LSTM": lambda: nn.LSTM(10, 32),
    "GRU": lambda: nn.GRU(10, 32, 2),
    "RNN": lambda: nn.RNN(5, 20),
    "Embedding": lambda: nn.Embedding(100, 32, padding_idx=0),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "half": lambda: nn.Linear(64, 32).to(torch.bfloat16),
    "channels last": lambda: nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last),
}


def drawn(module):
    return as_drawn(dict(module.named_parameters()))


def matrices(module):
    return tuple(name for name, one in module.named_parameters() if one.dim() > 1)


def net(bias=True, how="torch"):
    model = nn.Sequential(
        nn.Linear(64, 128, bias), nn.ReLU(), nn.Linear(128, 128, bias), nn.ReLU(), nn.Linear(128, 10, bias)
    )
    for module in model:
        if how != "torch" and isinstance(module, nn.Linear):
            INITS[how](module.weight)
            if bias:
                nn.init.zeros_(module.bias)
    return model


def train(model, steps=200, lr=1e-2):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 64, generator=generator), torch.randint(0, 10, (256,), generator=generator)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OF_TORCH)
@pytest.mark.parametrize("seed", range(5))
def test_layers_of_torch_are_as_drawn(kind, seed):
    torch.manual_seed(seed)
    module = OF_TORCH[kind]()
    assert drawn(module) == matrices(module)


@pytest.mark.parametrize("how", INITS)
@pytest.mark.parametrize("bias", [True, False])
def test_usual_draws_are_known_and_trained_from_them_they_are_not(how, bias):
    torch.manual_seed(0)
    model = net(bias, how)
    assert drawn(model) == matrices(model)
    train(model)
    assert drawn(model) == ()


def test_a_uniform_draw_is_known_to_the_digit():
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    train(nn.Sequential(layer, nn.Linear(64, 10)), steps=10)
    assert (layer.weight.norm() / 64**0.5 * 3**0.5 - 1).abs() < 0.01
    assert drawn(layer) == ()


def test_constant_tiny_and_strange_weights_are_not_judged():
    torch.manual_seed(0)
    assert drawn(nn.Linear(7, 9)) == ()
    assert drawn(nn.Linear(8, 8)) == ("weight",)
    assert (
        as_drawn({"w": torch.zeros(8, 8), "ones": torch.ones(8, 8), "ids": torch.ones(8, 8, dtype=torch.int64)}) == ()
    )
    assert drawn(nn.Linear(64, 64, device="meta")) == ()
    assert drawn(nn.LazyLinear(8)) == ()
    assert as_drawn({"w": torch.full((8, 8), torch.nan), "s": torch.randn(64, 64).to_sparse()}) == ()
    assert as_drawn({}) == ()


def test_a_bias_that_has_been_trained_tells_that_a_normal_weight_has_been_as_well():
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    nn.init.kaiming_normal_(layer.weight)
    assert drawn(layer) == ("weight",)
    layer.bias.data.mul_(0.01)
    assert drawn(layer) == ()
    layer.bias.data.zero_()
    assert drawn(layer) == ("weight",)


def test_what_may_be_chance_counts_only_where_nothing_looks_trained():
    torch.manual_seed(0)
    chance = torch.randn(32, 32) * (2 / 32) ** 0.5
    trained = torch.randn(32, 32) * 0.4
    certain = torch.empty(32, 32).uniform_(-(32**-0.5), 32**-0.5)
    assert as_drawn({"a.weight": chance, "b.weight": chance}) == ("a.weight", "b.weight")
    assert as_drawn({"a.weight": chance, "b.weight": trained}) == ()
    assert as_drawn({"a.weight": certain, "b.weight": trained}) == ("a.weight",)
    assert as_drawn({"a.weight": chance, "b.weight": trained, "a.bias": torch.zeros(32)}) == ("a.weight",)


def test_of_very_many_weights_an_even_share_is_judged():
    torch.manual_seed(0)
    many = {f"{index}.weight": torch.empty(16, 16).uniform_(-0.25, 0.25) for index in range(500)}
    assert 150 <= len(as_drawn(many)) <= 200


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.frozen, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.frozen.requires_grad_(False)
        self.blocks = [nn.Linear(16, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 16))]
        self.loose = {"w": nn.Parameter(torch.empty(16, 16).uniform_(-0.25, 0.25))}


def test_a_setup_names_what_is_untrained_among_all_that_no_optimizer_moves():
    torch.manual_seed(0)
    model = Hiding()
    setup = setup_of(model, [torch.optim.SGD(model.head.parameters(), lr=0.1)])
    hidden = ("blocks[0].weight", "blocks[1].1.weight", "loose['w']")
    assert setup.untrained == ("body.weight", "frozen.weight", *hidden)
    assert setup_of(model).untrained == ("frozen.weight", *hidden)
    for layer in (model.body, model.frozen, model.blocks[0], model.blocks[1][1]):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
    assert setup_of(model, [torch.optim.SGD(model.head.parameters(), lr=0.1)]).untrained == ("loose['w']",)


# --- watched ---


def looked(watched):
    names, flags = watched.look()
    return those(names, flags.tolist())


MOVES = {
    "optimizer": lambda one: torch.optim.SGD([one], lr=0.1).step(),
    "through data": lambda one: one.data.mul_(0.99),
    "other data": lambda one: setattr(one, "data", one.data * 0.99),
    "checkpoint": lambda one: one.detach().copy_(torch.ones_like(one)),
    "other dtype": lambda one: setattr(one, "data", one.data.double()),
}


@pytest.mark.parametrize("move", MOVES)
def test_whoever_moves_a_weight_is_seen(move):
    weight = nn.Parameter(torch.randn(8, 8))
    weight.grad = torch.ones_like(weight)
    watched = Untouched({"w": weight})
    assert looked(watched) == ("w",)
    MOVES[move](weight)
    assert looked(watched) == ()


def test_only_weights_with_a_gradient_count_unless_they_ask_for_none():
    asks, frozen = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8), requires_grad=False)
    watched = Untouched({"asks": asks, "frozen": frozen})
    assert looked(watched) == ("frozen",)
    asks.grad = torch.zeros_like(asks)
    assert looked(watched) == ("frozen",)
    asks.grad[7, 7] = 1.0
    assert looked(watched) == ("asks", "frozen")
    asks.grad = torch.eye(8).to_sparse()
    assert looked(watched) == ("asks", "frozen")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
        return func(*args, **(kwargs or {}))


def test_a_look_at_watched_weights_waits_for_nothing():
    asks, frozen = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8), requires_grad=False)
    asks.grad = torch.ones_like(asks)
    watched = Untouched({"asks": asks, "frozen": frozen})
    with NoWaiting():
        names, flags = watched.look()
    assert those(names, flags.tolist()) == ("asks", "frozen")


def test_weights_are_not_kept_alive_by_being_watched():
    weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    watched = Untouched({"w": weight})
    assert len(watched) == 1
    del weight
    assert looked(watched) == ()
