"""Models and a task to be treated."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, mse_loss, relu

from evengrad.nouns import Task
from evengrad.treat import (
    AddActivation,
    AddNormalization,
    AddOutputActivation,
    AddResidual,
    Reinitialize,
    RemoveOutputActivation,
    SwapActivation,
    TruncateBackprop,
    UseGatedCell,
)

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import what is beside them


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class Functional(nn.Module):
    """A functional relu, and a layer whose width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(relu(self.first(x)))))


class ReadsWeights(nn.Module):
    """Uses its layers by their weights, so that they cannot be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.linear(x, self.first.weight).relu() * self.first(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.act, self.head = nn.Tanh(), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.inner(self.embedding(x))))


class FunctionalOutput(nn.Module):
    """Two layers with nothing between, and a functional softmax on the output, in a model that holds another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide, self.last = Functional(), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.body(x))).softmax(dim=-1)


class SharedLayer(nn.Module):
    """One layer and one activation, under two names each, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.first, self.last = nn.Sigmoid(), nn.Linear(6, 6), nn.Linear(6, 3)
        self.act2, self.first2 = self.act, self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(self.act2(self.first2(self.act(self.first(x)))))))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](5, 7, num_layers=2, batch_first=True)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def deep(activation: Callable[[], nn.Module], depth: int, width: int, features: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(features, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Dropout(0.1),
        nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(4 * 16 * 16, 3),
    )  # fmt: skip


def transformer() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Linear(5, 8), layer, nn.Tanh(), nn.Linear(8, 2))


def parametrized() -> nn.Sequential:
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), inner, nn.Sigmoid(), nn.Linear(8, 3))


def sigmoid_net() -> nn.Sequential:
    return deep(nn.Sigmoid, 4, 6, 6)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sigmoid net": (sigmoid_net, (4, 6)),
    "exp net": (lambda: deep(Exp, 4, 6, 6), (4, 6)),
    "functional output": (FunctionalOutput, (4, 6)),
    "functional": (Functional, (4, 6)),
    "reads weights": (ReadsWeights, (4, 6)),
    "tied": (Tied, (4,)),
    "shared": (SharedLayer, (4, 6)),
    "conv": (convolutional, (2, 1, 8, 8)),
    "transformer": (transformer, (4, 3, 5)),
    "lstm": (lambda: Recurrent("lstm"), (4, 3, 5)),
    "gru": (lambda: Recurrent("gru"), (4, 3, 5)),
    "rnn": (lambda: Recurrent("rnn"), (4, 3, 5)),
    "parametrized": (parametrized, (4, 6)),
}

OF_MODELS = {
    "reinitialize": Reinitialize(),
    "lsuv": Reinitialize(data_driven=True),
    "delta": Reinitialize(scheme="delta_orthogonal", recurrent_gain=0.9, forget_bias=2.0),
    "zero residual": Reinitialize(zero_residual=True),
    "swap relu": SwapActivation(to="relu"),
    "swap tanh": SwapActivation(to="tanh"),
    "swap prelu": SwapActivation(to="prelu"),
    "swap selu": SwapActivation(to="selu"),
    "add activation": AddActivation(kind="tanh"),
    "output": RemoveOutputActivation(),
    "output in training": RemoveOutputActivation(when="training"),
    "softmax on the output": AddOutputActivation(to="softmax"),
    "softplus on the output": AddOutputActivation(to="softplus"),
    "auto norm": AddNormalization(),
    "layer norm": AddNormalization(kind="layer"),
    "batch norm": AddNormalization(kind="batch"),
    "group norm": AddNormalization(kind="group"),
    "rms norm": AddNormalization(kind="rms"),
    "residual": AddResidual(),
    "normed residual": AddResidual(norm="auto", zero_init=True),
    "gru": UseGatedCell(),
    "lstm": UseGatedCell(kind="lstm"),
    "truncate": TruncateBackprop(steps=2),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


@pytest.fixture
def make_deep() -> Callable[..., nn.Sequential]:
    return deep


@pytest.fixture
def models() -> dict[str, Callable[[], nn.Module]]:
    return {name: make for name, (make, _) in MODELS.items()}


@pytest.fixture(params=sorted(MODELS))
def model_and_batch(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[request.param]
    torch.manual_seed(3)
    return make(), torch.randint(10, shape) if request.param == "tied" else torch.randn(shape)


@pytest.fixture(params=sorted(OF_MODELS))
def of_models(request: pytest.FixtureRequest) -> Any:
    return OF_MODELS[request.param]


def make_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.25)


def make_sgd_of_the_head(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(model.children())[-1].parameters(), lr=0.5)


def make_batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 6), torch.zeros(8, 1)) for _ in range(2)]


def make_raw_batches() -> list[tuple[Tensor, Tensor]]:
    return [(100 + 50 * torch.randn(8, 6), 100 * torch.randn(8, 1)) for _ in range(2)]


def minus_one(_model: nn.Module) -> float:
    return -1.0


def plain_recurrent() -> Recurrent:
    return Recurrent("rnn")


def make_sequences() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 40, 5), torch.zeros(4, 2))]


def linear_stack() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))


def bounded_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Tanh())


@pytest.fixture
def task() -> Task:
    return Task(model=sigmoid_net, optimizer=make_sgd, loss=mse_loss, train=make_batches, validate=minus_one, steps=3)


# Treatments that find nothing to change in a feed-forward net: what their task has instead.
TASKS: dict[str, dict[str, Any]] = {
    "TruncateBackprop": {"model": plain_recurrent, "train": make_sequences},
    "UseGatedCell": {"model": plain_recurrent, "train": make_sequences},
    "AddActivation": {"model": linear_stack},
    "RemoveOutputActivation": {"model": bounded_net},
    "AddOutputActivation": {"loss": binary_cross_entropy},
    "NormalizeInput": {"train": make_raw_batches},
    "NormalizeTarget": {"train": make_raw_batches},
    "TrainEverything": {"optimizer": make_sgd_of_the_head},
    "KeepInFloat32": {"autocast": "bfloat16"},
}


@pytest.fixture
def task_of(task: Task) -> Callable[[Any], Task]:
    return lambda kind: replace(task, **TASKS.get(kind.__name__, {}))
