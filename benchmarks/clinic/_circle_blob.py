"""Programs on points in the plane: two circles, three blobs."""

from dataclasses import replace
from functools import cache

from sklearn.datasets import make_blobs, make_circles
from torch import nn

from evengrad import Task

from ._build import (
    BY_ADAM,
    CE,
    Exp,
    Split,
    adam,
    drawn,
    fed,
    glorot,
    he_uniform,
    layers,
    net,
    orthogonal,
    sgd,
    small_uniform,
    split,
    stack,
)
from ._program import Program


@cache
def circle() -> Split:
    points, side = make_circles(1000, noise=0.1, random_state=1)
    return split(points, side, 700, shuffle=False)


@cache
def blob() -> Split:
    points, centre = make_blobs(1000, centers=3, n_features=2, cluster_std=2, random_state=2)
    return split(points, centre, 700, shuffle=False)


def on_circle(depth, activation, weight, optimizer=BY_ADAM):
    model = net((2, depth, 5, 2), activation, weight)
    return Task(name="circle", model=model, optimizer=optimizer, loss=CE, **fed(circle(), 128, 300))


def on_blob(depth, width, activation, weight, optimizer=BY_ADAM):
    model = net((2, depth, width, 3), activation, weight)
    return Task(name="blob", model=model, optimizer=optimizer, loss=CE, **fed(blob(), 128, 300))


def relu_on_logits():
    return drawn(stack(2, 4, 50, nn.ReLU, 3, nn.ReLU()), he_uniform)


def restless():
    """Batches of one point with a learning rate and a momentum for large batches: 5 passes of 700 steps."""
    small = fed(blob(), 1, 5)
    return replace(on_blob(1, 50, nn.ReLU, he_uniform, sgd(0.01, momentum=0.9)), **small)


def tanh_of_depth(depth):
    return on_circle(depth, nn.Tanh, orthogonal)


PROGRAMS = (
    Program(
        number=1,
        name="circle, 12 x 5 sigmoid",
        origin="AUTOTRAINER, Models_Circle c632dcbd",
        faulty=on_circle(12, nn.Sigmoid, he_uniform),
        fixed=tanh_of_depth(12),
        families=("vanishing-depth",),
        place=layers(0, 12),
        reaches=0.84,
        note="The fix is tanh with orthogonal weights; He, SELU, residual blocks reach less on some seed.",
    ),
    Program(
        number=2,
        name="circle, 8 x 5 sigmoid",
        origin="AUTOTRAINER, demo Gradient_Vanish_Case",
        faulty=on_circle(8, nn.Sigmoid, he_uniform),
        fixed=tanh_of_depth(8),
        families=("vanishing-depth",),
        place=layers(0, 8),
        reaches=0.84,
    ),
    Program(
        number=3,
        name="circle, 8 x 5 exponential",
        origin="AUTOTRAINER, Models_Circle 0ae2cd88",
        faulty=on_circle(8, Exp, he_uniform),
        fixed=tanh_of_depth(8),
        families=("exploding-depth", "non-finite"),
        place=layers(0, 17),
        reaches=0.84,
    ),
    Program(
        number=4,
        name="circle, 8 x 5 ReLU, uniform(-.05, .05)",
        origin="AUTOTRAINER, Models_Circle 8de47bdc",
        faulty=on_circle(8, nn.ReLU, small_uniform),
        fixed=tanh_of_depth(8),
        families=("init-small", "vanishing-depth"),
        place=layers(0, 17),
        reaches=0.84,
        note="The fix is tanh with orthogonal weights: leaky ReLU with He weights reaches .76 on one seed.",
    ),
    Program(
        number=5,
        name="circle, 17 x 5 ReLU",
        origin="AUTOTRAINER, Models_Circle e8a6e959",
        faulty=on_circle(17, nn.ReLU, he_uniform),
        fixed=tanh_of_depth(17),
        families=("dead", "collapsed"),
        place=layers(0, 35),
        reaches=0.84,
    ),
    Program(
        number=6,
        name="blob, 12 x 5 sigmoid",
        origin="AUTOTRAINER, Models_Blob bd4e58b7",
        faulty=on_blob(12, 5, nn.Sigmoid, he_uniform),
        fixed=on_blob(12, 5, nn.Tanh, glorot),
        families=("vanishing-depth",),
        place=layers(0, 12),
        reaches=0.81,
    ),
    Program(
        number=7,
        name="blob, 9 x 5 exponential",
        origin="AUTOTRAINER, Models_Blob 0b6f114d",
        faulty=on_blob(9, 5, Exp, he_uniform),
        fixed=on_blob(9, 5, nn.Tanh, glorot),
        families=("exploding-depth", "non-finite"),
        place=layers(0, 19),
        reaches=0.8,
    ),
    Program(
        number=8,
        name="blob, one point per batch",
        origin="AUTOTRAINER, demo Oscillating_Loss_Case",
        faulty=restless(),
        fixed=on_blob(1, 50, nn.ReLU, he_uniform),
        families=("lr-high", "oscillation"),
        place=("optimizer", "loss"),
        reaches=0.83,
    ),
    Program(
        number=9,
        name="blob, ReLU on the logits",
        origin="AUTOTRAINER, demo Improper_Activation_case",
        faulty=replace(on_blob(4, 50, nn.ReLU, he_uniform, adam(1e-4)), model=relu_on_logits),
        fixed=on_blob(4, 50, nn.ReLU, he_uniform, adam(1e-4)),
        families=("activation-on-logits", "dead"),
        place=("8", "9"),
        reaches=0.83,
    ),
    Program(
        number=13,
        name="circle, 5 x 5 tanh, learning rate 10",
        origin="DeepFD, modify_lr",
        faulty=on_circle(5, nn.Tanh, he_uniform, sgd(10.0)),
        fixed=on_circle(5, nn.Tanh, he_uniform, sgd(0.1, momentum=0.9)),
        families=("lr-high",),
        place=("optimizer",),
        reaches=0.81,
    ),
    Program(
        number=14,
        name="circle, 5 x 5 tanh, learning rate 1e-10",
        origin="DeepFD, modify_lr",
        faulty=on_circle(5, nn.Tanh, he_uniform, adam(1e-10)),
        fixed=on_circle(5, nn.Tanh, he_uniform),
        families=("lr-low",),
        place=("optimizer",),
        reaches=0.84,
    ),
)
