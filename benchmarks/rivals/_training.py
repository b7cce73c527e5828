"""Plain trainings of what a rival made of a program, counted in rows that are seen."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from zlib import crc32

import numpy as np
import torch
from clinic._build import Split, accuracy
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ._networks import LOSSES, network
from ._programs import Contest

Settings = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """How a network is trained.

    Args:
        kind: The optimizer.
        settings: Of the optimizer.
        loss: By its name in Keras.
        batch: Rows of a batch.
        epochs: Passes over the data.
        clip_value: The most that an entry of a gradient may be; None for any.
        reduce_lr: Whether the rate falls to a fifth when the held back loss has not fallen for five passes.
        scaled: Whether each input column is brought to the range from 0 to 1, training and held back rows apart.
    """

    kind: type[Optimizer]
    settings: Settings
    loss: str
    batch: int
    epochs: int
    clip_value: float | None = None
    reduce_lr: bool = False
    scaled: bool = False

    @property
    def lr(self) -> float:
        """The learning rate."""
        return dict(self.settings)["lr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a rival ends with: a network and how to train it.

    Args:
        make: Makes a fresh network from torch's global random state.
        config: Its training.
        label: What was changed.
    """

    make: Callable[[], nn.Sequential]
    config: Config
    label: str


Watch = Callable[[int, nn.Sequential, float], bool]
"""Looks at a network after a pass and its mean loss; True ends the training."""


def config_of(contest: Contest) -> Config:
    """Read how the faulty program is trained."""
    kind, settings = contest.faulty.optimizer.args
    return Config(
        kind=kind, settings=tuple(settings.items()), loss=contest.loss, batch=contest.batch, epochs=contest.epochs
    )


def network_of(contest: Contest) -> nn.Sequential:
    """Make a fresh network of the faulty program, with the output that its original has."""
    return network(contest.faulty.model(), contest.output)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def choices(contest: Contest, seed: int) -> np.random.Generator:
    """Make what a rival's choices are drawn from, of its own for every program."""
    return np.random.default_rng([seed, crc32(contest.key.encode())])


def hot(targets: Tensor, classes: int) -> Tensor:
    """Write integer targets as rows with a one."""
    return targets if targets.is_floating_point() else functional.one_hot(targets, classes).float()


def to_learn(contest: Contest, *, scaled: bool) -> Split:
    """Give the data with targets as losses take them."""
    data = scaled_inputs(contest.data) if scaled else contest.data
    return replace(
        data, targets=hot(data.targets, contest.classes), held_targets=hot(data.held_targets, contest.classes)
    )


def scaled_inputs(data: Split) -> Split:
    return replace(data, inputs=_to_one(data.inputs), held_inputs=_to_one(data.held_inputs))


def _to_one(rows: Tensor) -> Tensor:
    low, high = rows.amin(0), rows.amax(0)
    return (rows - low) / torch.where(high > low, high - low, 1.0)


def score(contest: Contest, model: nn.Module, *, scaled: bool = False, trained_on: bool = False) -> float:
    """Measure the metric on the held back rows, or on those that are trained on."""
    data = scaled_inputs(contest.data) if scaled else contest.data
    if trained_on:
        labels = data.targets.argmax(1) if contest.metric is accuracy and data.targets.ndim > 1 else data.targets
        data = replace(data, held_inputs=data.inputs, held_targets=labels)
    model.eval()
    with torch.no_grad():
        value = float(contest.metric(data, model))
    return value if isfinite(value) else float("nan")


def train(contest: Contest, model: nn.Sequential, config: Config, watch: Watch | None = None) -> int:
    """Train in place and return how many rows were seen.

    Nothing changes any more once a loss is not finite: the rest is counted, but not computed, unless it is watched.
    """
    data = to_learn(contest, scaled=config.scaled)
    optimizer = config.kind(model.parameters(), **dict(config.settings))
    schedule = ReduceLROnPlateau(optimizer, factor=0.2, patience=5, min_lr=0.001) if config.reduce_lr else None
    order, broken = torch.Generator().manual_seed(0), False
    for epoch in range(config.epochs):
        total = float("nan")
        rows = torch.randperm(len(data.inputs), generator=order)
        if not broken:
            model.train()
            total = sum(_step(model, optimizer, config, data.inputs[part], data.targets[part])
                        for part in rows.split(config.batch))  # fmt: skip
            broken = not isfinite(total)
        if schedule is not None and not broken:
            schedule.step(loss_of(model, config.loss, data.held_inputs, data.held_targets))
        if watch is not None and watch(epoch, model, total / len(data.inputs)):
            return (epoch + 1) * len(data.inputs)
    return config.epochs * len(data.inputs)


def _step(model: nn.Sequential, optimizer: Optimizer, config: Config, inputs: Tensor, targets: Tensor) -> float:
    optimizer.zero_grad()
    loss = LOSSES[config.loss](model(inputs), targets)
    loss.backward()
    if config.clip_value is not None:
        nn.utils.clip_grad_value_(model.parameters(), config.clip_value)
    optimizer.step()
    return loss.item() * len(inputs)


def loss_of(model: nn.Sequential, loss: str, inputs: Tensor, targets: Tensor) -> float:
    """Take the mean loss of some rows in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return LOSSES[loss](model(inputs), targets).item()


def metric_from(contest: Contest, choice: Choice, seed: int) -> float:
    """Train a choice from fresh weights, and measure."""
    seed_all(seed)
    model = choice.make()
    seed_all(seed)
    train(contest, model, choice.config)
    return score(contest, model, scaled=choice.config.scaled)
