"""Small tasks that the tests of the search repair."""

import torch
from torch import nn
from torch.nn import functional

import evengrad


def data(count=192):
    inputs = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :4].argmax(1)


def deep(activation=nn.Sigmoid, depth=12, std=None, outputs=4):
    def make_model():
        layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
        model = nn.Sequential(*layers, nn.Linear(16, outputs))
        for module in model if std is not None else ():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
        return model

    return make_model


def task(model=None, **changes):
    inputs, labels = data()
    settings = {
        "model": model or deep(),
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=5e-3),
        "loss": functional.cross_entropy,
        "train": lambda: [(inputs, labels)],
        "validate": lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
        "steps": 24,
    }
    return evengrad.Task(**(settings | changes))
