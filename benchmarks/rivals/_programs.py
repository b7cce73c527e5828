"""The nine programs of the published comparison that can be rebuilt, as tasks and as their Keras originals saw them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from clinic import PROGRAMS
from clinic._build import CE, Split, accuracy, by, drawn, fed, r2
from clinic._digits import digits, divided_labels, one_hot
from clinic._small import boxes, five_times, halves, hits, ones_and_zeros, remainders
from torch import Tensor, nn
from torch.nn import functional

from evengrad import Task

Metric = Callable[[Split, nn.Module], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """A faulty program of the comparison.

    Args:
        key: Its name in the published table.
        name: What it is.
        origin: Where it comes from.
        published: What the table says: faulty, random search, AUTOTRAINER, fix.
        faulty: The training with the fault.
        fixed: A training that works.
        data: What is trained on.
        batch: Rows of a batch.
        epochs: Passes over the data.
        metric: From data and model to a number, higher is better.
        loss: Of the faulty program, by its name in Keras.
        output: Activation of the output, by its name in Keras, where losses take probabilities.
        classes: Of integer targets; 0 where they are numbers.
        note: What differs from the published program.
    """

    key: str
    name: str
    origin: str
    published: tuple[str, str, str, str]
    faulty: Task
    fixed: Task
    data: Split
    batch: int
    epochs: int
    metric: Metric = accuracy
    loss: str = "categorical_crossentropy"
    output: str = "softmax"
    classes: int = 0
    note: str = ""

    @property
    def regression(self) -> bool:
        """Whether the target is a number."""
        return self.metric is r2

    @property
    def examples(self) -> int:
        """Rows that one training sees."""
        return self.epochs * len(self.data.inputs)


def _clinic(key: str, number: int, published: tuple[str, str, str, str], data: Split, **settings) -> Contest:
    program = next(program for program in PROGRAMS if program.number == number)
    return Contest(
        key=key,
        name=program.name,
        origin=program.origin,
        published=published,
        faulty=program.faulty,
        fixed=program.fixed,
        data=data,
        **{"note": program.note, **settings},
    )


def small_cnn(*, first: Callable[[Tensor], object] = nn.init.xavier_uniform_, last: tuple[nn.Module, ...] = ()):
    """Build the CNN of Keras' MNIST example for pictures of 8 x 8, with Keras' weights: Glorot, biases zero."""
    modules = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    modules += [nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.5)]
    model = drawn(nn.Sequential(*modules, nn.Linear(64, 10), *last), nn.init.xavier_uniform_)
    first(model[1].weight)
    return model


def cross_entropy_of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Take the cross entropy as Keras does: rows are divided by their sum and held between 1e-7 and 1 - 1e-7."""
    chances = (output / output.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return functional.nll_loss(chances.log(), target)


def _on_digits(model: Callable[[], nn.Module], lr: float = 1.0, loss=CE) -> Task:
    optimizer = by(torch.optim.Adadelta, lr)
    return Task(name="digits", model=model, optimizer=optimizer, loss=loss, **fed(digits(), 32, 12))


def _mutation(key: str, name: str, published: tuple[str, str, str, str], faulty: Task, **settings) -> Contest:
    return Contest(
        key=key,
        name=name,
        origin=f"DeepCrime, MNIST, {name}",
        published=published,
        faulty=faulty,
        data=digits(),
        batch=32,
        epochs=12,
        classes=10,
        **{"fixed": _on_digits(small_cnn), **settings},
    )


OVER_PROBABILITIES = _on_digits(
    partial(small_cnn, last=(nn.Softmax(dim=1),)),
    loss=cross_entropy_of_probabilities,
)

CONTESTS = (
    _clinic(
        "D1", 19, (".52", "1.00", "T/O", "1.00"), ones_and_zeros(),
        batch=32, epochs=1, metric=halves, loss="binary_crossentropy",
    ),
    _clinic(
        "D4", 15, (".10", ".95", ".10", ".94"), one_hot(),
        batch=10, epochs=20, loss="mean_squared_error", output="linear", classes=10,
    ),
    _clinic("D6", 23, (".45", ".60", "T/O", "1.00"), boxes(), batch=128, epochs=5, classes=2),
    _clinic(
        "D7", 24, ("6.71", ".91", "N/A", ".13"), five_times(),
        batch=32, epochs=10, metric=r2, loss="mean_squared_error", output="linear",
        note="The published metric is the mean absolute error, lower is better; ours is R2.",
    ),
    _clinic("D8", 22, (".22", ".57", ".54", ".33"), remainders(), batch=32, epochs=10, metric=hits),
    _clinic("D9", 25, (".10", ".13", ".10", ".99"), divided_labels(), batch=64, epochs=20, classes=10),
    _mutation("M1", "learning rate 0.001", (".85", ".86", "N/A", ".99"), _on_digits(small_cnn, 0.001)),
    _mutation(
        "M2", "first layer all zero", (".11", ".43", ".99", ".99"),
        _on_digits(partial(small_cnn, first=nn.init.zeros_)),
    ),
    _mutation(
        "M3", "no softmax on the output", (".10", ".52", ".31", ".99"),
        replace(OVER_PROBABILITIES, model=small_cnn), fixed=OVER_PROBABILITIES, output="linear",
    ),
)  # fmt: skip
