"""Two networks for scikit-learn's handwritten digits (1,797 real images of 8x8 pixels) that do not learn."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from evengrad.nouns import Task, TaskError

BATCH = 64
VALIDATION = 360
Batches = list[tuple[Tensor, Tensor]]


def load() -> tuple[Batches, Tensor, Tensor]:
    """Read the images that come with scikit-learn: training batches, validation images, validation labels.

    Raises:
        TaskError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise TaskError(
            "demo", came="no scikit-learn", wanted="its handwritten digits", advice="pip install 'evengrad[demo]'"
        ) from err
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    train_images, train_labels = images[VALIDATION:], labels[VALIDATION:]
    batches = [
        (train_images[start : start + BATCH], train_labels[start : start + BATCH])
        for start in range(0, len(train_labels) - BATCH + 1, BATCH)
    ]
    return batches, images[:VALIDATION], labels[:VALIDATION]


def accuracy(images: Tensor, labels: Tensor, model: nn.Module) -> float:
    """Share of images that are recognised."""
    return float((model(images).argmax(1) == labels).float().mean())


def deep_sigmoid() -> nn.Module:
    """Build twelve hidden sigmoid layers with torch's own default weights."""
    widths = [64] + [64] * 12
    layers = [layer for wide_in, wide_out in pairwise(widths) for layer in (nn.Linear(wide_in, wide_out), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def large_relu() -> nn.Module:
    """Build twelve hidden ReLU layers whose weights are drawn with a standard deviation of 0.45."""
    layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.45)
            nn.init.zeros_(module.bias)
    return model


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam with its default learning rate."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=0.05)


def vanishing_digits(steps: int = 900) -> Task:
    """A deep sigmoid network that stays at chance."""
    batches, images, labels = load()
    return Task(
        name="digits, 12 sigmoid layers",
        model=deep_sigmoid,
        optimizer=adam,
        loss=functional.cross_entropy,
        train=partial(_same, batches),
        validate=partial(accuracy, images, labels),
        steps=steps,
    )


def exploding_digits(steps: int = 600) -> Task:
    """A deep ReLU network that starts too large and is NaN after a few steps."""
    batches, images, labels = load()
    return Task(
        name="digits, 12 ReLU layers that start too large",
        model=large_relu,
        optimizer=sgd,
        loss=functional.cross_entropy,
        train=partial(_same, batches),
        validate=partial(accuracy, images, labels),
        steps=steps,
    )


def _same(batches: Batches) -> Iterable[tuple[Tensor, Tensor]]:
    return batches
