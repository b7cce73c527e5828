"""Random search over the space of the published comparison, and over a narrow one without what makes no sense."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Literal

import numpy as np
import torch
from torch import nn

from ._networks import ACTIVATIONS, INITIALIZERS, LOSSES, behind_hidden, draw_, weighted, with_output
from ._programs import Contest
from ._training import Choice, Config, choices, config_of, network_of, score, seed_all, train

Space = Literal["wide", "narrow"]

OPTIMIZERS = (
    torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adam,
    torch.optim.Adamax, torch.optim.NAdam,
)  # fmt: skip
BATCHES = (16, 32, 64, 128, 256, 512)
FUNCTIONS = (
    "elu", "softmax", "selu", "softplus", "softsign", "relu", "tanh", "sigmoid", "hard_sigmoid", "exponential",
    "linear",
)  # fmt: skip
AS_IT_WAS = ""

NARROW_HIDDEN = ("relu", "elu", "selu", "tanh")
NARROW_OUTPUT = ("softmax", "sigmoid", "linear")
NARROW_LOSSES = ("categorical_crossentropy", "binary_crossentropy", "mean_squared_error")
NARROW_INITIALIZERS = ("he_uniform", "glorot_uniform", "lecun_uniform", "he_normal", "glorot_normal", "lecun_normal")
MOST_FAILED = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point of the space; an empty name leaves what the program has.

    Args:
        activations: Behind each layer with weights; the last one is the output's.
        kernels: Initialiser of the weights of each layer.
        biases: Initialiser of the biases of each layer.
    """

    activations: tuple[str, ...]
    kernels: tuple[str, ...]
    biases: tuple[str, ...]


def made(contest: Contest, point: Point) -> nn.Sequential:
    """Make a fresh network at a point."""
    model = network_of(contest)
    layers = weighted(model)
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, point.kernels, point.biases, strict=True):
            if kernel:
                draw_(layer.weight, kernel)
            if bias and layer.bias is not None:
                draw_(layer.bias, bias)
    names = dict(zip(layers, point.activations, strict=True))
    model = behind_hidden(model, lambda layer, old: [ACTIVATIONS[names[layer]]() if names[layer] else old])
    return with_output(model, point.activations[-1]) if point.activations[-1] else model


@dataclass(frozen=True, kw_only=True, slots=True)
class Searching:
    """How a search ended.

    Args:
        choice: The point with the best metric.
        score: That metric.
        rows: That all its trainings have seen.
        trainings: How many there were.
    """

    choice: Choice
    score: float
    rows: int
    trainings: int


def random_search(contest: Contest, space: Space, *, seed: int, rows: int) -> Searching:
    """Try the faulty program, then random points, until the next one has no room.

    Args:
        contest: The program.
        space: Which points there are.
        seed: Of points and weights.
        rows: That all trainings together may see.
    """
    random = choices(contest, seed)
    layers = len(weighted(network_of(contest)))
    nothing = Point(activations=(AS_IT_WAS,) * layers, kernels=(AS_IT_WAS,) * layers, biases=(AS_IT_WAS,) * layers)
    base = config_of(contest)
    choice = Choice(make=partial(made, contest, nothing), config=base, label="nothing")
    best = Searching(choice=choice, score=_tried(contest, choice, seed), rows=contest.examples, trainings=1)
    seen, trainings, failed = best.rows, 1, 0
    multiplier = float(random.uniform(1.1, 1.3))
    while failed < MOST_FAILED:
        point, config = (_wide if space == "wide" else _narrow)(random, layers, base, multiplier)
        if seen + config.epochs * len(contest.data.inputs) > rows:
            break
        choice = Choice(make=partial(made, contest, point), config=config, label=_said(point, config))
        try:
            reached = _tried(contest, choice, seed + trainings)
        except (ValueError, RuntimeError):  # a bias cannot be orthogonal; a shape that the loss refuses
            failed += 1
            continue
        seen, trainings = seen + config.epochs * len(contest.data.inputs), trainings + 1
        if reached > best.score or not isfinite(best.score):
            best = Searching(choice=choice, score=reached, rows=seen, trainings=trainings)
    return replace(best, rows=seen, trainings=trainings)


def _tried(contest: Contest, choice: Choice, seed: int) -> float:
    seed_all(seed)
    model = choice.make()
    train(contest, model, choice.config)
    return score(contest, model)


def _wide(random: np.random.Generator, layers: int, base: Config, multiplier: float) -> tuple[Point, Config]:
    """Draw from the published space: every layer on its own, and a learning rate that is seldom below 0.1."""
    power = int(random.integers(-4, 5))
    config = Config(
        kind=_one(random, OPTIMIZERS),
        settings=(("lr", float(random.uniform(1e-6, 10))),),
        loss=_one(random, tuple(LOSSES)),
        batch=_one(random, _with(BATCHES, base.batch)),
        epochs=max(1, int(base.epochs * multiplier**power)),
    )
    return _point(random, layers, (*FUNCTIONS, AS_IT_WAS), (*INITIALIZERS, AS_IT_WAS)), config


def _narrow(random: np.random.Generator, layers: int, base: Config, multiplier: float) -> tuple[Point, Config]:
    """Draw what somebody with experience would: one activation and initialiser for all, a rate on a log scale."""
    config = Config(
        kind=_one(random, OPTIMIZERS),
        settings=(("lr", float(10 ** random.uniform(-5, 0))),),
        loss=_one(random, (*NARROW_LOSSES, base.loss)),
        batch=_one(random, _with(BATCHES[:4], base.batch)),
        epochs=base.epochs,
    )
    hidden, kernel = _one(random, (*NARROW_HIDDEN, AS_IT_WAS)), _one(random, (*NARROW_INITIALIZERS, AS_IT_WAS))
    output = _one(random, (*NARROW_OUTPUT, AS_IT_WAS))
    bias = "zeros" if kernel else AS_IT_WAS
    point = Point(activations=(hidden,) * (layers - 1) + (output,), kernels=(kernel,) * layers, biases=(bias,) * layers)
    return point, config


def _point(random: np.random.Generator, layers: int, functions: Sequence[str], initializers: Sequence[str]) -> Point:
    def several(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_one(random, names) for _ in range(layers))

    return Point(activations=several(functions), kernels=several(initializers), biases=several(initializers))


def _one(random: np.random.Generator, names):
    return names[int(random.integers(len(names)))]


def _with(sizes: tuple[int, ...], own: int) -> tuple[int, ...]:
    return sizes if own in sizes else (*sizes, own)


def _said(point: Point, config: Config) -> str:
    functions = "/".join(name or "same" for name in point.activations)
    return f"{config.kind.__name__} lr {config.lr:.3g}, batch {config.batch}, {config.loss}, {functions}"
