"""Trainings that are fine: a clinic that finds something here is wrong."""

from functools import cache, partial

import torch
from sklearn.datasets import load_wine
from torch import nn

from ._build import Split, adam, he_uniform, net, orthogonal, residual, split, stack
from ._circle_blob import on_circle
from ._digits import convolutional, digits, of, on_digits
from ._program import Healthy
from ._sequences import Reader, add
from ._small import cancer, classify, diabetes, regress, standard


@cache
def wine() -> Split:
    data = load_wine()
    return split(standard(torch.tensor(data.data)), data.target, 130)


HEALTHY = (
    Healthy(name="C1 circle, 5 x 5 tanh", task=on_circle(5, nn.Tanh, he_uniform), reaches=0.83),
    Healthy(name="C2 circle, 17 x 5 tanh", task=on_circle(17, nn.Tanh, orthogonal), reaches=0.84),
    Healthy(name="C3 digits MLP", task=on_digits(3, 64, nn.ReLU, he_uniform), reaches=0.95),
    Healthy(name="C4 digits CNN", task=of(convolutional, adam(1e-3), digits()), reaches=0.95),
    Healthy(
        name="C5 digits, twenty residual blocks",
        task=of(partial(residual, 64, 20, 64, 10), adam(1e-3), digits(), epochs=10),
        reaches=0.95,
    ),
    Healthy(
        name="C6 wine",
        task=classify(partial(stack, 13, 2, 32, nn.ReLU, 3), adam(1e-2), wine(), 32, 20),
        reaches=0.95,
    ),
    Healthy(
        name="C7 diabetes",
        task=regress(partial(stack, 10, 2, 64, nn.ReLU, 1), adam(1e-3), diabetes(scaled=True), 32, 10),
        reaches=0.5,
    ),
    Healthy(
        name="C8 adding, LSTM",
        task=add(partial(Reader, nn.LSTM, (2, 64, 1), forget=1.0), adam(1e-2), 30, 15, clip=1.0),
        reaches=0.95,
    ),
    Healthy(
        name="C9 breast cancer, tanh",
        task=classify(net((30, 2, 16, 2), nn.Tanh, he_uniform), adam(1e-2), cancer(scaled=True), 32, 30),
        reaches=0.95,
    ),
)
