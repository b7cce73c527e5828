"""Small trainings to be tuned: one that needs no clipping, one that explodes without."""

import torch
from torch import nn
from torch.nn import functional

import evengrad


def data(count=256):
    inputs = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :4].argmax(1)


def network(depth, std=None):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for module in model if std is not None else ():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
    return model


def task(model, lr, **changes):
    inputs, labels = data()
    settings = {
        "model": model,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=lr),
        "loss": functional.cross_entropy,
        "train": lambda: [(inputs[at : at + 32], labels[at : at + 32]) for at in range(0, 192, 32)],
        "validate": lambda model: (model(inputs[192:]).argmax(1) == labels[192:]).float().mean().item(),
        "steps": 48,
    }
    return evengrad.Task(**(settings | changes))


def healthy(**changes):
    return task(**({"model": lambda: network(2), "lr": 0.2, "name": "healthy"} | changes))


def exploding(**changes):
    """Each layer makes the signal almost three times as large: on every seed the loss is NaN after a few steps."""
    return task(**({"model": lambda: network(6, std=1.0), "lr": 0.05, "name": "exploding"} | changes))
