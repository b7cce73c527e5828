"""Faults of networks that the forty do not have: cut graphs, wrong derivatives, one bad layer, closed gates."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from evengrad import Task

from ._build import (
    BCE_LOGITS,
    BY_ADAM,
    CE,
    MSE,
    Split,
    accuracy_of_logit,
    adam,
    drawn,
    fed,
    he_uniform,
    layers,
    r2,
    sgd,
    split,
    stack,
)
from ._digits import digits, of, on_digits, one_hot
from ._program import Program
from ._sequences import Reader, copying, plain, recall, remembering, temporal_order
from ._small import cancer

LEARNING = sgd(0.05)


def headed(body: nn.Module, width: int) -> nn.Module:
    return Headed(body, nn.Linear(width, 10))


class Headed(nn.Module):
    """A body and a head."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Cut(Headed):
    """The body's output is detached, as for a loss of its own that is not there."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


class Hidden(nn.Module):
    """The layers of the body are in a list, where torch does not see them."""

    def __init__(self, body: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.steps, self.head = list(body), head

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x)


def narrow() -> nn.Sequential:
    """Build a body of six layers of twelve tanh units, whose random features alone are not enough."""
    return drawn(stack(64, 6, 12, nn.Tanh, 12), partial(nn.init.xavier_uniform_, gain=5 / 3))[:-1]


def whole(kind: type[nn.Module] = Headed) -> nn.Module:
    return kind(narrow(), nn.Linear(12, 10))


def frozen() -> nn.Module:
    model = whole()
    model.body.requires_grad_(False)
    return model


def head_only(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.head.parameters(), lr=3e-3)


class TripledFunction(torch.autograd.Function):
    """A ReLU with its own derivative, which is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.factor * grads[0] * (x > 0), None


class OwnReLU(nn.Module):
    """A ReLU whose backward multiplies with a factor that should be 1."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return TripledFunction.apply(x, self.factor)


class Lengths(nn.Module):
    """The lengths of pairs of units: the derivative of the root at zero is infinite; times zero, it is not a number."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return (x.unflatten(1, (-1, 2)).square().sum(2) + self.epsilon).sqrt()


class Shares(nn.Module):
    """Probabilities as shares of what is positive: those of the others are exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return x / (x.sum(1, keepdim=True) + 1e-6)


class Untamed(nn.Module):
    """A residual block without a normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = drawn(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)), he_uniform)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Tamed(Untamed):
    """A residual block whose branch begins as zero."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.zeros_(self.inner[-1].weight)


def tower(block: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), *(block(64) for _ in range(24)), nn.Linear(64, 10))


def scaled(number: int, factor: float) -> nn.Sequential:
    """Build six layers of 64 units with one of them scaled."""
    model = drawn(stack(64, 6, 64, nn.ReLU, 10), he_uniform)
    with torch.no_grad():
        model[number].weight.mul_(factor)
    return model


def surrogate(factor: float) -> nn.Sequential:
    model = drawn(stack(64, 8, 64, nn.ReLU, 10), he_uniform)
    return nn.Sequential(*(OwnReLU(factor) if isinstance(module, nn.ReLU) else module for module in model))


def rooted(epsilon: float) -> nn.Sequential:
    """Take lengths of pairs of units, both of which dropout makes zero at times."""
    modules = [nn.Linear(64, 128), nn.Tanh(), nn.Dropout(0.3), Lengths(epsilon)]
    return nn.Sequential(*modules, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cross_entropy_by_hand(probability: Tensor, target: Tensor) -> Tensor:
    return -(target * probability.log()).sum(1).mean()


def penalty_only(output: Tensor, target: Tensor) -> Tensor:
    """Detach what is to be learnt; what is left is a penalty of large outputs."""
    return CE(output.detach(), target) + 1e-3 * output.square().mean()


def with_penalty(output: Tensor, target: Tensor) -> Tensor:
    return CE(output, target) + 1e-3 * output.square().mean()


@cache
def flags() -> Split:
    """The breast cancer set with a column of zeros and ones as its target."""
    data = cancer(scaled=True)
    return replace(data, targets=data.targets[:, None].float(), held_targets=data.held_targets[:, None])


@cache
def percent() -> Split:
    inputs = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    return split(inputs, 100 * torch.sigmoid(inputs[:, :2].sum(1, keepdim=True)), 700)


def ending(features: int, width: int, outputs: int, *last: nn.Module) -> Any:
    return partial(stack, features, 2, width, nn.ReLU, outputs, *last)


def flagged(*last: nn.Module) -> Task:
    """Take the network's output as a logit, in the loss and in validation."""
    data = fed(flags(), 32, 20, accuracy_of_logit)
    return Task(name="cancer", model=ending(30, 16, 1, *last), optimizer=sgd(0.1), loss=BCE_LOGITS, **data)


def percentages(optimizer, *last: nn.Module) -> Task:
    data = fed(percent(), 32, 30, r2)
    return Task(name="percent", model=ending(8, 32, 1, *last), optimizer=optimizer, loss=MSE, **data)


WHOLE = of(whole, adam(3e-3), digits())
TARGET = on_digits(6, 64, nn.ReLU, he_uniform, LEARNING)
OWN = on_digits(8, 64, nn.ReLU, he_uniform, sgd(0.03), epochs=30)
SMALL = on_digits(6, 64, nn.ReLU, he_uniform, sgd(0.01))
SHARES = of(ending(64, 64, 10, Shares()), BY_ADAM, one_hot(), loss=cross_entropy_by_hand)

PROGRAMS = (
    Program(
        number=101,
        name="digits, softmax before the cross entropy",
        origin="a common mistake",
        faulty=of(ending(64, 64, 10, nn.Softmax(1)), sgd(0.1), digits()),
        fixed=of(ending(64, 64, 10), sgd(0.1), digits()),
        families=("softmax-twice", "activation-on-logits"),
        place=("4", "5", "loss"),
        reaches=0.92,
    ),
    Program(
        number=102,
        name="breast cancer, sigmoid before the cross entropy with logits",
        origin="a common mistake",
        faulty=flagged(nn.Sigmoid()),
        fixed=flagged(),
        families=("activation-on-logits", "softmax-twice"),
        place=("4", "5", "loss"),
        reaches=0.95,
    ),
    Program(
        number=103,
        name="digits, the body is not in the optimizer",
        origin="a common mistake",
        faulty=replace(WHOLE, optimizer=head_only),
        fixed=WHOLE,
        families=("stale-weights", "signal-cut"),
        place=("body*", "optimizer"),
        reaches=0.9,
    ),
    Program(
        number=104,
        name="digits, the body is frozen as it was drawn",
        origin="a common mistake",
        faulty=replace(WHOLE, model=frozen),
        fixed=WHOLE,
        families=("stale-weights", "signal-cut"),
        place=("body*", "optimizer"),
        reaches=0.9,
    ),
    Program(
        number=105,
        name="digits, detach between body and head",
        origin="a common mistake",
        faulty=replace(WHOLE, model=partial(whole, Cut)),
        fixed=WHOLE,
        families=("signal-cut", "stale-weights"),
        place=("body*",),
        reaches=0.9,
    ),
    Program(
        number=106,
        name="digits, layers in a list",
        origin="a common mistake",
        faulty=replace(WHOLE, model=partial(whole, Hidden)),
        fixed=WHOLE,
        families=("stale-weights", "signal-cut"),
        place=("steps*", "head", "optimizer"),
        reaches=0.9,
    ),
    Program(
        number=107,
        name="copying over 30 steps, LSTM with forget gates shut",
        origin="Gers, Schmidhuber & Cummins 2000, the reverse",
        faulty=recall(partial(Reader, nn.LSTM, (9, 32, 8), forget=-10.0), adam(3e-3), copying(30), 10),
        fixed=recall(partial(Reader, nn.LSTM, (9, 32, 8), forget=5.0), adam(3e-3), copying(30), 20, clip=1.0),
        families=("gates", "vanishing-time"),
        place=("rnn",),
        reaches=0.95,
    ),
    Program(
        number=108,
        name="digits, one layer a hundred times too large",
        origin="an initialisation left over",
        faulty=replace(TARGET, model=partial(scaled, 4, 100.0)),
        fixed=TARGET,
        families=("layer-out-of-line", "init-large"),
        place=("4",),
        reaches=0.92,
    ),
    Program(
        number=109,
        name="digits, one layer ten thousand times too small",
        origin="an initialisation left over",
        faulty=replace(SMALL, model=partial(scaled, 8, 1e-4)),
        fixed=SMALL,
        families=("layer-out-of-line", "init-small"),
        place=("8",),
        reaches=0.9,
    ),
    Program(
        number=110,
        name="digits, a derivative of one's own is three times too large",
        origin="a wrong autograd function",
        faulty=replace(OWN, model=partial(surrogate, 3.0)),
        fixed=replace(OWN, model=partial(surrogate, 1.0)),
        families=("wrong-backward",),
        place=layers(1, 16)[::2],
        reaches=0.92,
    ),
    Program(
        number=111,
        name="digits, a derivative of one's own has the wrong sign",
        origin="a wrong autograd function",
        faulty=replace(OWN, model=partial(surrogate, -1.0)),
        fixed=replace(OWN, model=partial(surrogate, 1.0)),
        families=("wrong-backward",),
        place=layers(1, 16)[::2],
        reaches=0.92,
    ),
    Program(
        number=112,
        name="digits, the logarithm of a zero",
        origin="a cross entropy by hand",
        faulty=SHARES,
        fixed=of(ending(64, 64, 10, nn.Softmax(1)), BY_ADAM, one_hot(), loss=cross_entropy_by_hand),
        families=("non-finite",),
        place=("loss",),
        reaches=0.92,
    ),
    Program(
        number=113,
        name="digits, a square root at zero",
        origin="a distance without an epsilon",
        faulty=of(partial(rooted, 0.0), BY_ADAM, digits()),
        fixed=of(partial(rooted, 1e-3), BY_ADAM, digits()),
        families=("non-finite",),
        place=("0", "1", "2", "3"),
        reaches=0.92,
    ),
    Program(
        number=114,
        name="temporal order, tanh, recurrent weights 3 orthogonal",
        origin="Pascanu, Mikolov & Bengio 2013",
        faulty=recall(plain((6, 32, 4), 3.0), sgd(0.1), temporal_order(40), 15),
        fixed=recall(partial(remembering, 6, 32, 4), BY_ADAM, temporal_order(40), 15, clip=1.0),
        families=("exploding-time", "init-large"),
        place=("rnn",),
        reaches=0.95,
    ),
    Program(
        number=115,
        name="digits, detach in the loss",
        origin="a common mistake",
        faulty=of(ending(64, 64, 10), BY_ADAM, digits(), loss=penalty_only),
        fixed=of(ending(64, 64, 10), BY_ADAM, digits(), loss=with_penalty),
        families=("signal-cut", "not-learning"),
        place=("loss", "4"),
        reaches=0.92,
    ),
    Program(
        number=116,
        name="percentages from a tanh",
        origin="a common mistake",
        faulty=percentages(adam(3e-3), nn.Tanh()),
        fixed=percentages(adam(3e-3)),
        families=("output-range", "target-scale"),
        place=("4", "5", "loss", "data"),
        reaches=0.9,
    ),
    Program(
        number=117,
        name="digits, 24 residual blocks without normalisation",
        origin="Zhang, Dauphin & Ma 2019, the pattern",
        faulty=of(partial(tower, Untamed), sgd(0.01), digits()),
        fixed=of(partial(tower, Tamed), BY_ADAM, digits()),
        families=("exploding-depth", "init-large"),
        place=("*",),
        reaches=0.92,
    ),
)
