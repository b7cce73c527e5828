"""Two tasks on scikit-learn's handwritten digits: `sick` does not learn, `healthy` does.

evengrad checkup examples/digits.py:sick
evengrad repair examples/digits.py:sick -o report.html
evengrad checkup examples/digits.py:healthy
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import evengrad

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)


def batches():
    return zip(images[train].split(64), labels[train].split(64), strict=True)


def accuracy(model):
    return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


def network(activation, depth):
    layers = [nn.Linear(64, 64), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(64, 64), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def task(model):
    return evengrad.Task(
        model=model,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        loss=nn.functional.cross_entropy,
        train=batches,
        validate=accuracy,
        steps=600,
    )


sick = task(lambda: network(nn.Sigmoid, depth=12))
healthy = task(lambda: network(nn.ReLU, depth=3))
