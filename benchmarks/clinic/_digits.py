"""Programs on scikit-learn's digits: pictures of 8 x 8 pixels, ten classes."""

from dataclasses import replace
from functools import cache, partial

from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from evengrad import Task

from ._build import (
    BY_ADAM,
    CE,
    MSE,
    Split,
    drawn,
    fed,
    he_normal,
    he_uniform,
    layers,
    net,
    normal,
    residual,
    sgd,
    small_uniform,
    split,
    stack,
)
from ._program import Program

TRAIN = 1400


@cache
def digits() -> Split:
    data = load_digits()
    return split(data.data / 16, data.target, TRAIN)


@cache
def unscaled() -> Split:
    """Pixels from 0 to 255, as pictures come from a file."""
    data = load_digits()
    return split(data.data / 16 * 255, data.target, TRAIN)


@cache
def divided_labels() -> Split:
    """The labels were divided by 255 together with the pixels, so that all are zero; validation has the true ones."""
    right = digits()
    return replace(right, targets=right.targets // 255)


@cache
def one_hot() -> Split:
    right = digits()
    return replace(right, targets=functional.one_hot(right.targets, 10).float())


def on_digits(depth, width, activation, weight, optimizer=BY_ADAM, epochs=20):
    model = net((64, depth, width, 10), activation, weight)
    return Task(name="digits", model=model, optimizer=optimizer, loss=CE, **fed(digits(), 64, epochs))


def lenet(activation: type[nn.Module]) -> nn.Sequential:
    """Build a small LeNet with nine dense layers of 84 units: the first weights are "1" and "4"."""
    modules = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1), activation(), nn.AvgPool2d(2)]
    modules += [nn.Conv2d(6, 16, 3), activation(), nn.Flatten()]
    return drawn(nn.Sequential(*modules, *stack(64, 9, 84, activation, 10)), he_normal)


def convolutional(*last: nn.Module) -> nn.Sequential:
    """Build a CNN whose head is "7"."""
    modules = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    modules += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*modules, *last)


def linear(weight=None) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 30), nn.Linear(30, 10))
    return model if weight is None else drawn(model, weight, weight)


def with_bias(value: float) -> nn.Sequential:
    return drawn(stack(64, 3, 64, nn.ReLU, 10), he_uniform, partial(nn.init.constant_, val=value))


def of(model, optimizer, data: Split, *, batch=64, epochs=20, loss=CE) -> Task:
    return Task(name="digits", model=model, optimizer=optimizer, loss=loss, **fed(data, batch, epochs))


def plain(weight: object = nn.init.xavier_uniform_) -> Task:
    return on_digits(34, 128, nn.ReLU, weight, epochs=10)


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return MSE(output, target)


GOOD = on_digits(3, 64, nn.ReLU, he_uniform)
TWENTY = on_digits(20, 64, nn.ReLU, he_normal, epochs=30)
AT_LR = {lr: on_digits(20, 64, nn.ReLU, he_normal, sgd(lr), epochs=40) for lr in (0.03, 0.05)}

PROGRAMS = (
    Program(
        number=10,
        name="digits, LeNet with nine sigmoid layers",
        origin="AUTOTRAINER, Models_MNIST 2af630c4",
        faulty=of(partial(lenet, nn.Sigmoid), BY_ADAM, digits()),
        fixed=of(partial(lenet, nn.ReLU), BY_ADAM, digits()),
        families=("vanishing-depth",),
        place=layers(1, 16),
        reaches=0.94,
    ),
    Program(
        number=11,
        name="digits, 17 x 64 ReLU, uniform(-.05, .05)",
        origin="AUTOTRAINER, tmp_lenet5",
        faulty=on_digits(17, 64, nn.ReLU, small_uniform),
        fixed=on_digits(17, 64, nn.ReLU, he_uniform),
        families=("init-small", "vanishing-depth"),
        place=layers(0, 35),
        reaches=0.92,
    ),
    Program(
        number=12,
        name="digits, 34 x 128 ReLU, Glorot",
        origin="AUTOTRAINER, Motivation/DyingReLU",
        faulty=plain(),
        fixed=replace(plain(), model=partial(residual, 64, 34, 128, 10)),
        families=("vanishing-depth", "init-small"),
        place=layers(0, 69),
        reaches=0.95,
        note="Ten passes: with twenty it gets out of the plateau on most seeds (.71/.89/.82).",
    ),
    Program(
        number=15,
        name="digits, linear 30-10, N(0, 1), learning rate 3",
        origin="Stack Overflow 48385830",
        faulty=of(partial(linear, normal(1.0)), sgd(3.0), one_hot(), batch=10, loss=mean_square),
        fixed=of(linear, sgd(0.1), digits(), batch=10),
        families=("lr-high", "init-large"),
        place=("optimizer", "0", "1"),
        reaches=0.94,
        note="The fix is the default weights, cross entropy and a learning rate of 0.1.",
    ),
    Program(
        number=25,
        name="digits, labels // 255",
        origin="Stack Overflow 59325381",
        faulty=replace(GOOD, **fed(divided_labels(), 64, 20)),
        fixed=GOOD,
        families=("labels",),
        place=("data",),
        reaches=0.95,
    ),
    Program(
        number=26,
        name="digits CNN, ReLU on the logits",
        origin="Stack Overflow 47352366",
        faulty=of(lambda: convolutional(nn.ReLU()), sgd(0.1), digits(), epochs=10),
        fixed=of(convolutional, sgd(0.1), digits(), epochs=10),
        families=("activation-on-logits", "dead"),
        place=("7", "8"),
        reaches=0.92,
    ),
    Program(
        number=27,
        name="digits from 0 to 255",
        origin="Stack Overflow 55328966, the pattern",
        faulty=of(net((64, 2, 128, 10), nn.ReLU, he_uniform), sgd(0.1), unscaled()),
        fixed=of(net((64, 2, 128, 10), nn.ReLU, he_uniform), sgd(0.1), digits()),
        families=("input-scale", "lr-high"),
        place=("data", "0", "optimizer"),
        reaches=0.94,
    ),
    Program(
        number=30,
        name="digits, all weights zero",
        origin="DeepCrime, zeros",
        faulty=on_digits(3, 64, nn.ReLU, nn.init.zeros_),
        fixed=GOOD,
        families=("collapsed", "signal-cut"),
        place=layers(0, 7),
        reaches=0.95,
    ),
    Program(
        number=31,
        name="digits, all weights one",
        origin="DeepCrime, ones",
        faulty=on_digits(4, 64, nn.ReLU, nn.init.ones_, sgd(0.01)),
        fixed=on_digits(4, 64, nn.ReLU, he_uniform, sgd(0.01), epochs=40),
        families=("exploding-depth", "collapsed", "init-large"),
        place=layers(0, 9),
        reaches=0.93,
        note="The fix trains twice as long: the learning rate is small.",
    ),
    Program(
        number=32,
        name="digits, 10 x 64 tanh, N(0, 1)",
        origin="Glorot & Bengio 2010, the pattern",
        faulty=on_digits(10, 64, nn.Tanh, normal(1.0), sgd(0.05)),
        fixed=on_digits(10, 64, nn.Tanh, nn.init.xavier_uniform_, sgd(0.05)),
        families=("init-large", "saturated", "exploding-depth"),
        place=layers(0, 20),
        reaches=0.95,
    ),
    Program(
        number=33,
        name="digits, 20 x 64 ReLU, N(0, .01)",
        origin="Mishkin & Matas 2016, the pattern",
        faulty=on_digits(20, 64, nn.ReLU, normal(0.01), sgd(0.05)),
        fixed=AT_LR[0.03],
        families=("init-small", "vanishing-depth"),
        place=layers(0, 41),
        reaches=0.92,
        note="He weights at 0.05 learn on two seeds of three in 20 passes; here 40 passes at 0.03.",
    ),
    Program(
        number=34,
        name="digits, 20 x 64 ReLU, N(0, .4)",
        origin="He et al. 2015, the pattern",
        faulty=on_digits(20, 64, nn.ReLU, normal(0.4), sgd(0.05)),
        fixed=AT_LR[0.03],
        families=("init-large", "exploding-depth"),
        place=layers(0, 41),
        reaches=0.92,
    ),
    Program(
        number=35,
        name="digits, biases -3",
        origin="DLCheck, the pattern of a test",
        faulty=of(partial(with_bias, -3.0), BY_ADAM, digits()),
        fixed=of(partial(with_bias, 0.0), BY_ADAM, digits()),
        families=("dead",),
        place=layers(0, 6),
        reaches=0.95,
    ),
)
