"""Faults of trainings that the forty do not have: settings of optimizers, precision, batches, data."""

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from ._build import BY_ADAM, CE, Split, adam, by, drawn, fed, glorot, he_uniform, sgd, stack
from ._circle_blob import on_blob
from ._digits import TRAIN, digits, of, on_digits
from ._program import Program
from ._small import cancer, classify, diabetes, regress

GOOD = on_digits(3, 64, nn.ReLU, he_uniform)
BY_SGD = on_digits(3, 64, nn.ReLU, he_uniform, sgd(0.1))


class InHalf(nn.Module):
    """A network that is computed in another type, from and to float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype)).float()


class Autocast(nn.Module):
    """Weights in float32, multiplications in half precision."""

    def __init__(self, inner: nn.Module, *, enabled: bool) -> None:
        super().__init__()
        self.inner, self.enabled = inner, enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.enabled):
            return self.inner(x).float()


def dense() -> nn.Sequential:
    return drawn(stack(64, 3, 64, nn.ReLU, 10), he_uniform)


def pure(dtype: torch.dtype) -> nn.Module:
    return InHalf(dense(), dtype)


def mixed(*, half: bool) -> nn.Module:
    return Autocast(dense(), enabled=half)


def weak_loss(output: Tensor, target: Tensor) -> Tensor:
    """Weigh the loss as one of many, so that gradients are far below half precision's smallest number."""
    return 1e-6 * CE(output, target)


def normalised() -> nn.Sequential:
    modules = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(64, 10))


@cache
def messy() -> Split:
    """Features in units from 1e-4 to 1e4."""
    data = cancer(scaled=True)
    units = torch.logspace(-4, 4, data.inputs.shape[1])
    return replace(data, inputs=data.inputs * units, held_inputs=data.held_inputs * units)


@cache
def constant() -> Split:
    """Every picture is the first one: the index of the loader does not move."""
    data = digits()
    return replace(data, inputs=data.inputs[:1].expand(TRAIN, -1).clone())


@cache
def shuffled() -> Split:
    """The labels are in another order than the pictures."""
    data = digits()
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(1))
    return replace(data, targets=data.targets[order])


@cache
def holed() -> Split:
    """Ten pictures of 1,400 have a pixel that is infinite."""
    data = digits()
    inputs = data.inputs.clone()
    inputs[torch.arange(10) * 100 + 50, 20] = torch.inf
    return replace(data, inputs=inputs)


@cache
def cleaned() -> Split:
    """As `holed`, without those pictures."""
    data = holed()
    good = data.inputs.isfinite().all(1)
    return replace(data, inputs=data.inputs[good], targets=data.targets[good])


@cache
def large_targets() -> Split:
    data = diabetes(scaled=True)
    return replace(data, targets=1e4 * data.targets, held_targets=1e4 * data.held_targets)


def regression(data: Split):
    return regress(partial(stack, 10, 2, 64, nn.ReLU, 1), BY_ADAM, data, 32, 30)


adamw = partial(by, torch.optim.AdamW)
CANCER = partial(stack, 30, 2, 16, nn.ReLU, 2)

PROGRAMS = (
    Program(
        number=121,
        name="digits, Adam with a learning rate of 0.1",
        origin="a common mistake",
        faulty=on_digits(5, 64, nn.ReLU, he_uniform, adam(0.1)),
        fixed=on_digits(5, 64, nn.ReLU, he_uniform),
        families=("lr-high",),
        place=("optimizer",),
        reaches=0.94,
    ),
    Program(
        number=122,
        name="digits, AdamW with a weight decay of 10",
        origin="a setting of SGD given to AdamW",
        faulty=replace(GOOD, optimizer=adamw(1e-2, weight_decay=10.0)),
        fixed=replace(GOOD, optimizer=adamw(1e-3, weight_decay=1e-2)),
        families=("weight-decay",),
        place=("optimizer",),
        reaches=0.94,
    ),
    Program(
        number=123,
        name="digits, SGD with a weight decay of 1",
        origin="a setting of AdamW given to SGD",
        faulty=replace(GOOD, optimizer=sgd(0.1, weight_decay=1.0)),
        fixed=replace(GOOD, optimizer=sgd(0.1, weight_decay=1e-4)),
        families=("weight-decay",),
        place=("optimizer",),
        reaches=0.94,
    ),
    Program(
        number=124,
        name="digits, Adam with an epsilon of 1",
        origin="an epsilon of a large model",
        faulty=replace(GOOD, optimizer=adam(1e-3, eps=1.0)),
        fixed=GOOD,
        families=("epsilon",),
        place=("optimizer",),
        reaches=0.94,
    ),
    Program(
        number=125,
        name="digits, all of it in bfloat16",
        origin="mixed precision without float32 weights",
        faulty=of(partial(pure, torch.bfloat16), adam(1e-4), digits(), epochs=40),
        fixed=of(partial(pure, torch.float32), adam(1e-4), digits(), epochs=40),
        families=("precision", "stale-weights"),
        place=("optimizer", "*"),
        note="weights that bfloat16 does not let change are a matter of precision and stand still: both are right",
        reaches=0.9,
    ),
    Program(
        number=126,
        name="digits, float16 without a scale of the loss",
        origin="Micikevicius et al. 2018",
        faulty=of(partial(mixed, half=True), adam(1e-3, eps=1e-16), digits(), loss=weak_loss),
        fixed=of(partial(mixed, half=False), adam(1e-3, eps=1e-16), digits(), loss=weak_loss),
        families=("precision",),
        place=("optimizer", "*"),
        reaches=0.94,
    ),
    Program(
        number=127,
        name="breast cancer, features from 1e-4 to 1e4",
        origin="the pattern without a scaler",
        faulty=classify(CANCER, sgd(0.01), messy(), 32, 30),
        fixed=classify(CANCER, sgd(0.01), cancer(scaled=True), 32, 60),
        families=("input-scale",),
        place=("data", "0"),
        reaches=0.94,
    ),
    Program(
        number=128,
        name="digits, every picture is the same",
        origin="a loader that does not move on",
        faulty=replace(GOOD, **fed(constant(), 64, 20)),
        fixed=GOOD,
        families=("bad-data",),
        place=("data",),
        reaches=0.94,
    ),
    Program(
        number=129,
        name="diabetes, target times 1e4",
        origin="the pattern without a scaler",
        faulty=regression(large_targets()),
        fixed=regression(diabetes(scaled=True)),
        families=("target-scale",),
        place=("data", "loss"),
        reaches=0.4,
    ),
    Program(
        number=130,
        name="digits, gradients clipped at 1e-6",
        origin="a threshold of another loss",
        faulty=replace(BY_SGD, clip=1e-6),
        fixed=replace(BY_SGD, clip=1.0),
        families=("clipping",),
        place=("optimizer", "*"),
        reaches=0.94,
    ),
    Program(
        number=131,
        name="digits, batch norm of two pictures",
        origin="Wu & He 2018",
        faulty=of(normalised, sgd(0.1), digits(), batch=2, epochs=3),
        fixed=of(normalised, sgd(0.1), digits(), batch=64, epochs=20),
        families=("batch-norm",),
        place=("1", "4"),
        reaches=0.94,
    ),
    Program(
        number=132,
        name="digits, labels in another order than the pictures",
        origin="a shuffle of one of two lists",
        faulty=replace(GOOD, **fed(shuffled(), 64, 20)),
        fixed=GOOD,
        families=("labels", "not-learning", "plateau"),
        place=("data", "loss"),
        reaches=0.94,
    ),
    Program(
        number=133,
        name="digits, infinite pixels",
        origin="a division in the data",
        faulty=replace(GOOD, **fed(holed(), 64, 20)),
        fixed=replace(GOOD, **fed(cleaned(), 64, 20)),
        families=("bad-data",),
        place=("data",),
        reaches=0.94,
    ),
    Program(
        number=134,
        name="blob, momentum of 0.999",
        origin="a setting of one's own",
        faulty=on_blob(2, 50, nn.ReLU, glorot, sgd(0.1, momentum=0.999)),
        fixed=on_blob(2, 50, nn.ReLU, glorot, sgd(0.1)),
        families=("lr-high", "oscillation", "divergence"),
        place=("optimizer", "loss"),
        reaches=0.83,
    ),
)
