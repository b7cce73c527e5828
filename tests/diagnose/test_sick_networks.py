"""Networks that do not train, rebuilt from published collections of faulty programs, get the code of their fault."""

from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits, make_circles
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of
from evengrad.probe import probe

he_uniform = partial(nn.init.kaiming_uniform_, nonlinearity="relu")
he_normal = partial(nn.init.kaiming_normal_, nonlinearity="relu")
small_uniform = partial(nn.init.uniform_, a=-0.05, b=0.05)


class Exp(nn.Module):
    def forward(self, x):
        return torch.exp(x)


def drawn(model, weight, bias=nn.init.zeros_):
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight(module.weight)
            bias(module.bias)
    return model


def stack(features, depth, width, activation, classes):
    layers, wide = [], features
    for _ in range(depth):
        layers += [nn.Linear(wide, width), activation()]
        wide = width
    return nn.Sequential(*layers, nn.Linear(width, classes))


def lenet(weight):
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(6, 16, 3), nn.Sigmoid(), nn.Flatten()]
    return drawn(nn.Sequential(*layers, *stack(64, 9, 84, nn.Sigmoid, 10)), weight)


class Adding(nn.Module):
    def __init__(self, kind, scale):
        super().__init__()
        self.rnn, self.head = kind(2, 32, batch_first=True), nn.Linear(32, 1)
        with torch.no_grad():
            for name, weight in self.rnn.named_parameters():
                if name.startswith("weight_hh"):
                    for part in weight.split(32):
                        part.copy_(scale * nn.init.orthogonal_(torch.empty(32, 32)))

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])[:, 0]


def circle(seed):
    points, side = make_circles(128, noise=0.2, factor=0.5, random_state=seed)
    return torch.tensor(points, dtype=torch.float32), torch.tensor(side)


def digits(seed):
    data = load_digits()
    rows = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))[:128]
    return torch.tensor(data.data[rows] / 16, dtype=torch.float32), torch.tensor(data.target[rows])


def adding(seed, steps=30):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(64, steps, generator=generator)
    marks = torch.zeros(64, steps)
    for row, marked in enumerate(marks):
        marked[torch.randperm(steps, generator=generator)[:2]] = 1.0 + 0 * row
    return torch.stack([values, marks], 2), (values * marks).sum(1)


def wild(width, depth):
    return drawn(stack(width, depth, width, nn.ReLU, 1), partial(nn.init.normal_, std=1.5))


def coins(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 16, generator=generator), torch.randint(0, 2, (64, 1), generator=generator).float()


CE, MSE, BCE = functional.cross_entropy, functional.mse_loss, functional.binary_cross_entropy
# The number is the one in the collection; then the codes of the fault and of what brings it about, told before it; the
# name is that of a layer that must (at least) be named by the fault, whose code is the lowest.
# The last one is ours: a sigmoid that overflows to 0 or 1 ends the gradient of the cross entropy before it begins.
PROGRAMS = {
    1: (lambda: drawn(stack(2, 12, 5, nn.Sigmoid, 2), he_uniform), CE, circle, {"EG101"}, "0"),
    2: (lambda: drawn(stack(2, 8, 5, nn.Sigmoid, 2), he_uniform), CE, circle, {"EG101"}, "0"),
    3: (lambda: drawn(stack(2, 8, 5, Exp, 2), he_uniform), CE, circle, {"EG105", "EG201"}, "5"),
    4: (lambda: drawn(stack(2, 8, 5, nn.ReLU, 2), small_uniform), CE, circle, {"EG101", "EG402"}, "0"),
    10: (lambda: lenet(he_normal), CE, digits, {"EG101"}, "1"),
    11: (lambda: drawn(stack(64, 17, 64, nn.ReLU, 10), small_uniform), CE, digits, {"EG101", "EG402"}, "0"),
    30: (lambda: drawn(stack(64, 3, 64, nn.ReLU, 10), nn.init.zeros_), CE, digits, {"EG301", "EG303"}, "1"),
    31: (lambda: drawn(stack(64, 4, 64, nn.ReLU, 10), nn.init.ones_), CE, digits, {"EG102", "EG303", "EG401"}, "8"),
    33: (
        lambda: drawn(stack(64, 20, 64, nn.ReLU, 10), partial(nn.init.normal_, std=0.01)),
        CE,
        digits,
        {"EG101", "EG402"},
        "0",
    ),
    34: (
        lambda: drawn(stack(64, 20, 64, nn.ReLU, 10), partial(nn.init.normal_, std=0.4)),
        CE,
        digits,
        {"EG102", "EG401"},
        "0",
    ),
    35: (
        lambda: drawn(stack(64, 3, 64, nn.ReLU, 10), he_uniform, partial(nn.init.constant_, val=-3.0)),
        CE,
        digits,
        {"EG301"},
        "1",
    ),
    36: (lambda: Adding(nn.RNN, 0.5), MSE, adding, {"EG103"}, "rnn"),
    "lost": (lambda: nn.Sequential(*wild(16, 12), nn.Sigmoid()), BCE, coins, {"EG102", "EG401"}, "20"),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("number", PROGRAMS)
def test_a_faulty_program_gets_the_code_of_its_fault(number, seed):
    make, loss, data, codes, where = PROGRAMS[number]
    torch.manual_seed(seed)
    findings = findings_of(probe(make(), loss, data(seed)))
    assert {finding.code for finding in findings} == codes
    fault = next(finding for finding in findings if finding.code == min(codes - {"EG105"}))
    assert not where or where in fault.where
