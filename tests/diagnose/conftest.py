"""A plain training loop with everything read that a record can hold, for rules that need real trainings."""

import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from evengrad.nouns import Reading, Record
from evengrad.probe import EndsSample, WeightSampler, probe, setup_of

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import what is beside them


def digits():
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def batches(data, size, steps):
    x, y = data
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(y), (size,), generator=generator)
        yield x[rows], y[rows]


def looks(step, steps):
    return step < 8 or step % (10 if step < 100 else 25) == 0 or step == steps - 1


def course(model, optimizer, steps, **settings):
    """Train on batches of digits with cross entropy and read every step, some of them closely.

    Args:
        model: Anything that takes 64 numbers.
        optimizer: Its optimizer.
        steps: How many.
        settings: `loss`, `data`, `size` of a batch, `clip` to a global norm, `schedule` of the optimizer, `forgets`
            zero_grad.
    """
    loss, data = settings.get("loss", functional.cross_entropy), settings.get("data") or digits()
    parameters = dict(model.named_parameters())
    trained = {name: one for name, one in parameters.items() if one.requires_grad}
    sampler, readings = WeightSampler(trained, model), []
    for step, (x, y) in enumerate(batches(data, settings.get("size", 64), steps)):
        closely, left = looks(step, steps), any(one.grad is not None for one in trained.values())
        layers = probe(model, loss, (x, y), allow_broken_loss=True).readings[0].layers if closely else ()
        if not settings.get("forgets"):
            optimizer.zero_grad()
        output = model(x)
        value = loss(output, y)
        ends = EndsSample(x, output, y, value)
        value.backward()
        norms = [float(one.grad.norm()) if one.grad is not None else 0.0 for one in trained.values()]
        total, clip = sum(norm**2 for norm in norms) ** 0.5, settings.get("clip")
        lrs = tuple(float(group["lr"]) for group in optimizer.param_groups)
        if closely:
            sampler.before()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained.values(), clip)
        optimizer.step()
        if closely:
            sampler.after()
        readings.append(
            Reading(
                step=step,
                loss=float(value.detach()),
                lrs=lrs,
                grad_norms=tuple(norms),
                total_norm=total,
                scale=1.0 if clip is None else min(1.0, clip / total),
                layers=layers,
                weights=sampler.readings(sampler.packed().tolist()) if closely else (),
                ends=ends.readings(ends.packed().tolist()) if closely else None,
                leftover=(left and bool(settings.get("forgets"))) if closely else None,
            )
        )
        if settings.get("schedule") is not None:
            settings["schedule"].step()
        if not torch.isfinite(value):
            break
    dtype = str(next(iter(trained.values())).dtype).removeprefix("torch.")
    setup = setup_of(model, [optimizer], trained)
    return Record(readings=tuple(readings), parameters=tuple(trained), dtype=dtype, setup=setup)


@pytest.fixture
def watched():
    """Give `course`, with the weights of every test drawn from the same seed, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield course
    torch.set_num_threads(threads)


@pytest.fixture
def mlp():
    """Give a maker of dense networks for digits: depth, width, activation."""

    def make(depth=2, width=64, activation=nn.ReLU):
        layers, wide = [], 64
        for _ in range(depth):
            layers += [nn.Linear(wide, width), activation()]
            wide = width
        return nn.Sequential(*layers, nn.Linear(wide, 10))

    return make
