"""Trainings that go well get no finding at their end; one that goes wrong on the way gets its own."""

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, make_circles
from torch import nn
from torch.nn import functional

from evengrad.diagnose import findings_of
from evengrad.nouns import Record
from evengrad.probe import probe


def stack(features, depth, width, activation, classes, scheme=nn.init.xavier_uniform_):
    layers, wide = [], features
    for _ in range(depth):
        layers += [nn.Linear(wide, width), activation()]
        wide = width
    model = nn.Sequential(*layers, nn.Linear(width, classes))
    for module in model:
        if isinstance(module, nn.Linear):
            scheme(module.weight)
            nn.init.zeros_(module.bias)
    return model


def digits():
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def circle():
    points, side = make_circles(1000, noise=0.2, factor=0.5, random_state=0)
    return torch.tensor(points, dtype=torch.float32), torch.tensor(side)


def cancer():
    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(data.target)


def course(model, optimizer, data, steps, sampled=5):
    """Train on batches of 64 with cross entropy, probing `sampled` times: the record and the accuracy at the end."""
    x, y = data
    generator, readings = torch.Generator().manual_seed(0), []
    for step in range(steps):
        rows = torch.randint(0, len(y), (64,), generator=generator)
        if step % (steps // sampled) == 0 or step == steps - 1:
            readings += probe(model, functional.cross_entropy, (x[rows], y[rows]), step=step).readings
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()
    return Record(readings=tuple(readings)), (model(x).argmax(1) == y).float().mean().item()


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr)


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def residual():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x):
            return x + self.down(functional.gelu(self.up(self.norm(x))))

    return nn.Sequential(nn.Linear(64, 32), *(Block() for _ in range(8)), nn.LayerNorm(32), nn.Linear(32, 10))


def cnn():
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10))


TRAININGS = {
    "digits, MLP, Adam": (lambda: stack(64, 2, 64, nn.ReLU, 10), adam, 1e-2, digits, 200, 0.95),
    "digits, MLP, SGD": (lambda: stack(64, 3, 64, nn.ReLU, 10), sgd, 0.05, digits, 200, 0.95),
    "digits, 12 tanh layers": (lambda: stack(64, 12, 64, nn.Tanh, 10), adam, 1e-3, digits, 300, 0.95),
    "digits, sigmoid": (lambda: stack(64, 1, 64, nn.Sigmoid, 10), adam, 1e-2, digits, 300, 0.95),
    "digits, residual": (residual, adam, 2e-3, digits, 200, 0.95),
    "digits, CNN": (cnn, adam, 3e-3, digits, 150, 0.95),
    "circle, 5 tanh layers": (lambda: stack(2, 5, 5, nn.Tanh, 2), adam, 1e-2, circle, 600, 0.8),
    "circle, 17 tanh layers": (lambda: stack(2, 17, 5, nn.Tanh, 2), adam, 3e-3, circle, 600, 0.8),
    "breast cancer, by heart": (
        lambda: stack(30, 3, 16, nn.Tanh, 2),
        adam,
        1e-2,
        cancer,
        1000,
        0.999,
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_goes_well_gets_no_finding(name):
    make, optimizer, lr, data, steps, accuracy = TRAININGS[name]
    torch.manual_seed(0)
    model = make()
    record, reached = course(model, optimizer(model, lr), data(), steps)
    assert reached >= accuracy
    assert [str(finding) for finding in findings_of(record)] == []


def test_a_training_that_saturates_is_told_with_the_steps_where_it_was_seen():
    torch.manual_seed(0)
    model = stack(2, 5, 5, nn.Tanh, 2)
    record, reached = course(model, torch.optim.SGD(model.parameters(), lr=10.0), circle(), 200)
    findings = {finding.code: finding for finding in findings_of(record)}
    assert reached < 0.7
    assert "EG302" in findings
    assert findings["EG302"].when[0] > 0
    assert findings["EG302"].when[1] == 199


def test_a_training_whose_loss_overflows_is_told_by_its_non_finite_numbers():
    torch.manual_seed(0)
    model = stack(64, 20, 64, nn.ReLU, 10, scheme=lambda weight: nn.init.normal_(weight, std=0.4))
    record, _ = course(model, sgd(model, 0.05), digits(), 10)
    told = [(finding.code, bool(finding.follows)) for finding in findings_of(record)]
    assert told[:2] == [("EG401", False), ("EG102", True)]
    assert ("EG201", True) in told
