"""Models to be sampled, and how their readings are compared with those of the exact probe."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from evengrad.probe import Sampler, probe

CLOSE = {"rel": 1e-5, "abs": 1e-12}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv, self.act = (
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return x + self.conv(self.act(self.norm(x)))


class Text(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2) if kind == "encoder" else nn.LSTM(8, 8, 2, dropout=0.2)

    def forward(self, x):
        h = self.body(self.embed(x))
        return self.head(h[0] if isinstance(h, tuple) else h)


class Tied(nn.Module):
    """One module called three times, a class token of its own, outputs that are a dict and a tuple."""

    def __init__(self):
        super().__init__()
        self.same, self.two, self.token = nn.Linear(6, 6), Two(), nn.Parameter(torch.ones(6))

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.same(x))
        one = self.two(x)
        return one["first"] * self.token + one["second"][0]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 6), 0.1))

    def forward(self, x):
        return {"first": x @ self.weight, "second": (x * 2, 3)}


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant, whole=False):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh()) for _ in range(2))
        self.reentrant, self.whole = reentrant, whole

    def forward(self, x):
        if self.whole:
            return checkpoint(self.run, x, use_reentrant=False)
        x = self.first(x)
        for part in self.parts:
            again = torch.is_grad_enabled()
            x = checkpoint(part, x, use_reentrant=self.reentrant) if again else part(x)
        return self.last(x)

    def run(self, x):
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return self.last(x).square().sum(1, keepdim=True)


def images():
    return torch.randn(4, 3, 8, 9)


def letters():
    return torch.randint(0, 11, (5, 7))


def vectors():
    return torch.randn(9, 6)


MODELS = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), Block(6), Block(6), nn.Flatten(), nn.Dropout(0.3)),
        images,
    ),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(3, 200, 3), Block(200)).to(memory_format=torch.channels_last),
        images,
    ),
    "encoder": (lambda: Text("encoder"), letters),
    "lstm": (lambda: Text("lstm"), letters),
    "tied": (Tied, vectors),
    "checkpointed": (lambda: Checkpointed(reentrant=False), vectors),
    "checkpointed as a whole": (lambda: Checkpointed(reentrant=False, whole=True), vectors),
    "parametrized": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
            nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        ),
        vectors,
    ),
    "reentrant": (lambda: Checkpointed(reentrant=True), vectors),
}


def sampled_once(model, loss, data, sampler=None):
    sampler = sampler or Sampler(model)
    sampler.arm()
    loss(model(data)).backward()
    numbers = sampler.packed()
    sampler.disarm()
    return sampler.readings(numbers.tolist())


def exact(model, loss, data):
    """What the probe says."""
    return probe(model, lambda output, _: loss(output), (data, torch.zeros(1))).readings[0].layers


NUMBERS = (
    "activation_rms", "activation_absmax", "zero_frac", "saturated_frac", "grad_rms", "time_grad_rms", "logit_absmax",
    "gate_stuck_frac", "gate_mean",
)  # fmt: skip
THE_SAME = (
    "name", "kind", "weighted", "nonlinearity", "numel", "units", "input_finite", "output_finite", "grad_finite",
    "training", "tracked",
)  # fmt: skip


def is_close(one, other, **tolerance):
    for name in NUMBERS:
        value, wanted = getattr(one, name), getattr(other, name)
        if value is None or wanted is None:
            assert value is wanted, f"{one.name}.{name}: {value} instead of {wanted}"
        else:
            assert value == pytest.approx(wanted, **tolerance), f"{one.name}.{name}"
    mean = tolerance["rel"] * other.activation_rms + 1e-12  # what has cancelled is not there to be compared with
    assert one.activation_mean == pytest.approx(other.activation_mean, abs=mean), f"{one.name}.activation_mean"
    if one.nonlinearity in {"relu", "relu6"} and one.observations == other.observations:  # else of several steps
        assert one.dead_frac == pytest.approx(other.dead_frac), f"{one.name}.dead_frac"
    assert [getattr(one, name) for name in THE_SAME] == [getattr(other, name) for name in THE_SAME]
    return True


def saturating():
    kinds = nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU, nn.GELU
    return nn.Sequential(*(layer for kind in kinds for layer in (nn.Linear(6, 6), kind())))


class Passing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)
