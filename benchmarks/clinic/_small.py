"""Programs on small tables and formulas: regressions, XOR, bits, boxes."""

from dataclasses import replace
from functools import cache, partial

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn import functional

from evengrad import Task

from ._build import (
    BCE,
    CE,
    MSE,
    Split,
    accuracy,
    adam,
    drawn,
    fed,
    he_uniform,
    net,
    r2,
    rmsprop,
    sgd,
    small_uniform,
    split,
    stack,
)
from ._program import Program


def standard(data: Tensor) -> Tensor:
    return (data - data.mean(0)) / data.std(0)


def halves(data: Split, model: nn.Module) -> float:
    """Score one output, a probability, against a target of 0 or 1."""
    return ((model(data.held_inputs) > 0.5) == data.held_targets.bool()).float().mean().item()


def hits(data: Split, model: nn.Module) -> float:
    """Score the largest output as right where the target has a 1 there."""
    return data.held_targets.gather(1, model(data.held_inputs).argmax(1, keepdim=True)).mean().item()


@cache
def parabola() -> Split:
    points = torch.linspace(-5, 5, 50)[:, None]
    values = 5 * points**2 + torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) ** 3
    return Split(inputs=points, targets=values, held_inputs=points, held_targets=values)


@cache
def quartic(*, scaled: bool) -> Split:
    points = torch.linspace(-100, 100, 401)[:, None]
    values = points**4
    return split(standard(points), standard(values), 300) if scaled else split(points, values, 300)


@cache
def mixture(*, scaled: bool) -> Split:
    inputs = 1e4 * torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    targets = inputs / 1e4 @ torch.tensor([[0.55], [0.25], [0.2]])
    return split(standard(inputs) if scaled else inputs, targets, 700)


@cache
def ones_and_zeros() -> Split:
    inputs = torch.cat([torch.ones(500, 128), torch.zeros(500, 128)])
    return split(inputs, inputs[:, :1].clone(), 700)


@cache
def xor() -> Split:
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return Split(inputs=inputs, targets=targets, held_inputs=inputs, held_targets=targets)


@cache
def remainders() -> Split:
    """Twenty bits; hot are the number's remainder by 7 and that of its three leading bits."""
    numbers = torch.randperm(2**20, generator=torch.Generator().manual_seed(0))[:4000]
    bits = ((numbers[:, None] >> torch.arange(20)) & 1).float()
    hot = functional.one_hot(numbers % 7, 7) + functional.one_hot((numbers >> 17) % 7, 7)
    return split(bits, hot.clamp(max=1).float(), 3000)


@cache
def boxes() -> Split:
    points = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    side = torch.arange(1000) % 2
    return split(points + side[:, None], side, 700)


@cache
def five_times() -> Split:
    points = 1 + 3 * torch.rand(300, 1, generator=torch.Generator().manual_seed(0))
    return split(points, 5 * points, 200)


@cache
def cancer(*, scaled: bool) -> Split:
    data = load_breast_cancer()
    inputs = torch.tensor(data.data)
    return split(standard(inputs) if scaled else inputs, data.target, 427)


@cache
def diabetes(*, scaled: bool) -> Split:
    data = load_diabetes()
    targets = torch.tensor(data.target)[:, None]
    return split(standard(torch.tensor(data.data)), standard(targets) if scaled else targets, 342)


def regress(model, optimizer, data: Split, batch: int, epochs: int) -> Task:
    return Task(name="regression", model=model, optimizer=optimizer, loss=MSE, **fed(data, batch, epochs, r2))


def classify(model, optimizer, data: Split, batch: int, epochs: int) -> Task:
    return Task(name="classes", model=model, optimizer=optimizer, loss=CE, **fed(data, batch, epochs, accuracy))


def decide(model, optimizer, data: Split, batch: int, epochs: int, loss=BCE) -> Task:
    return Task(name="yes or no", model=model, optimizer=optimizer, loss=loss, **fed(data, batch, epochs, halves))


def curve():
    return nn.Sequential(nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 1))


def bent():
    return nn.Sequential(nn.Linear(1, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.ELU(), nn.Linear(50, 1))


def three_in(*last: nn.Module):
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), *last)


def with_dropout(last: type[nn.Module], **settings):
    modules = [nn.Linear(128, 50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 50), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*modules, nn.Linear(50, 1), last(**settings))


def two_and_three():
    modules = [nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Softmax(1)]
    return drawn(nn.Sequential(*modules), small_uniform)


def gate(width: int, activation: type[nn.Module]):
    return nn.Sequential(nn.Linear(2, width), activation(), nn.Linear(width, 1), nn.Sigmoid())


def bits(width: int):
    return stack(20, 2, width, nn.ReLU, 7)


SOFTMAX_OF_ONE = ("activation-on-logits", "output-range", "signal-cut")
UNTRAINED = ("not-learning", "lr-low", "plateau")
GATE = decide(partial(gate, 8, nn.Tanh), adam(0.05), xor(), 4, 300)
BOXES = classify(partial(stack, 2, 1, 2, nn.Sigmoid, 2), adam(1e-3), boxes(), 128, 5)
CANCER = net((30, 2, 16, 2), nn.ReLU, he_uniform)
DIABETES = partial(stack, 10, 2, 64, nn.ReLU, 1)

PROGRAMS = (
    Program(
        number=16,
        name="a parabola with noise, learning rate 0.1",
        origin="Stack Overflow 48934338",
        faulty=regress(curve, sgd(0.1), parabola(), 10, 200),
        fixed=regress(curve, sgd(1e-4), parabola(), 10, 200),
        families=("lr-high", "target-scale"),
        place=("optimizer", "data", "loss"),
        reaches=0.92,
    ),
    Program(
        number=17,
        name="x to the fourth, x up to 100",
        origin="Stack Overflow 52800582",
        faulty=regress(bent, adam(1e-3), quartic(scaled=False), 32, 100),
        fixed=regress(bent, adam(1e-2), quartic(scaled=True), 32, 100),
        families=("target-scale", "input-scale"),
        place=("data", "loss", "0"),
        reaches=0.98,
        note="The fix standardises and takes a learning rate of 1e-2.",
    ),
    Program(
        number=18,
        name="three inputs up to 1e4, softmax of one unit",
        origin="Stack Overflow 33969059",
        faulty=regress(lambda: three_in(nn.Softmax(1)), sgd(0.1, momentum=0.9), mixture(scaled=False), 32, 30),
        fixed=regress(three_in, sgd(0.1, momentum=0.9), mixture(scaled=True), 32, 30),
        families=SOFTMAX_OF_ONE,
        place=("4", "5"),
        reaches=0.98,
        note="Without the softmax the unscaled inputs still saturate the tanh (R2 0): the fix scales them too.",
    ),
    Program(
        number=19,
        name="ones against zeros, softmax of one unit",
        origin="Stack Overflow 31880720",
        faulty=decide(partial(with_dropout, nn.Softmax, dim=1), rmsprop(1e-3), ones_and_zeros(), 32, 1),
        fixed=decide(partial(with_dropout, nn.Sigmoid), rmsprop(1e-3), ones_and_zeros(), 32, 1),
        families=SOFTMAX_OF_ONE,
        place=("6", "7"),
        reaches=0.98,
    ),
    Program(
        number=20,
        name="XOR, softmax of one unit",
        origin="Stack Overflow 34311586",
        faulty=decide(two_and_three, sgd(1e-3), xor(), 4, 1000),
        fixed=GATE,
        families=SOFTMAX_OF_ONE,
        place=("4", "5"),
        reaches=1.0,
        note="All four points are trained on and scored. The sigmoid alone does not cure it: eight tanh units, Adam.",
    ),
    Program(
        number=21,
        name="XOR, mean absolute error",
        origin="Stack Overflow 31556268",
        faulty=decide(partial(gate, 4, nn.Sigmoid), sgd(0.05), xor(), 4, 2000, loss=functional.l1_loss),
        fixed=GATE,
        families=UNTRAINED,
        place=("optimizer", "loss"),
        reaches=1.0,
        note="All four points are trained on and scored.",
    ),
    Program(
        number=22,
        name="twenty bits, remainders by 7",
        origin="Stack Overflow 56380303",
        faulty=replace(classify(partial(bits, 20), sgd(0.01), remainders(), 32, 10), **fed(remainders(), 32, 10, hits)),
        fixed=replace(
            classify(partial(bits, 256), adam(1e-3), remainders(), 32, 20), **fed(remainders(), 32, 20, hits)
        ),
        families=UNTRAINED,
        place=("optimizer", "loss"),
        reaches=0.95,
        note="The targets are ours: one of the two hot remainders can be learnt, so that there is a fix.",
    ),
    Program(
        number=23,
        name="two boxes, five passes",
        origin="Stack Overflow 50306988",
        faulty=BOXES,
        fixed=replace(BOXES, optimizer=adam(0.1), **fed(boxes(), 128, 15)),
        families=("lr-low", "not-learning"),
        place=("optimizer", "loss"),
        reaches=0.98,
        note="A lucky draw of the weights (seed 0) is right for most points already.",
    ),
    Program(
        number=24,
        name="five times x, learning rate 1e-3",
        origin="Stack Overflow 51181393",
        faulty=regress(partial(nn.Linear, 1, 1), rmsprop(1e-3), five_times(), 32, 10),
        fixed=regress(partial(nn.Linear, 1, 1), sgd(0.05), five_times(), 32, 10),
        families=("lr-low",),
        place=("optimizer",),
        reaches=0.97,
    ),
    Program(
        number=28,
        name="breast cancer, unscaled",
        origin="the pattern without a scaler",
        faulty=classify(CANCER, sgd(0.01), cancer(scaled=False), 32, 30),
        fixed=classify(CANCER, sgd(0.01), cancer(scaled=True), 32, 30),
        families=("input-scale", "lr-high"),
        place=("data", "0", "optimizer"),
        reaches=0.95,
    ),
    Program(
        number=29,
        name="diabetes, unscaled target",
        origin="Stack Overflow 46642627, the pattern",
        faulty=regress(DIABETES, sgd(0.01), diabetes(scaled=False), 32, 30),
        fixed=regress(DIABETES, sgd(0.01), diabetes(scaled=True), 32, 30),
        families=("target-scale", "lr-high"),
        place=("data", "loss", "optimizer"),
        reaches=0.5,
    ),
)
