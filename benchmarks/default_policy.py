"""What chose the default policy: healthy trainings that it must leave alone, bad steps that it must take away.

    python benchmarks/default_policy.py -o default_policy.json

Healthy: small real trainings, three seeds each, without clipping and with every candidate: the share of steps clipped,
and what was reached on data held back. Drills: those of the trainings that use SGD, with the gradient of five stretches
of one to three steps multiplied by 4 to 10 000, after step 50; then of three single steps among the first 25. Levels:
made-up norms without a network. "floor" is `ByZScore(std_floor=...)`, "f. 1, w. 25" the default with a warm-up of 25
steps. The policies see the norms as the guard would hand them over. One thread; about fifteen minutes.
"""

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional

from evengrad.clip import AbstractPolicy, ByGlobalNorm, ByZScore, ZClip

SEEDS = (0, 1, 2)
FLOORS = (0.01, 0.1, 0.5, 1.0, 2.0)
POLICIES: dict[str, AbstractPolicy] = {
    "none": ByGlobalNorm(math.inf),
    "ZClip": ZClip(max_grad_norm=None),
    **{f"floor {floor:g}": ByZScore(std_floor=floor) for floor in FLOORS},
    "f. 1, w. 25": ByZScore(warmup_steps=25),
    "clip 1.0": ByGlobalNorm(1.0),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training: the model, how it learns, and its data; the last quarter of the data is held back."""

    name: str
    model: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    data: tuple[Tensor, Tensor]
    steps: int = 600
    batch: int = 64


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training with one policy: the share of good steps clipped, and the accuracy (or R2; -1 at worst) reached."""

    job: str
    policy: str
    drill: str
    seed: int
    clipped: float
    reached: float


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(bunch.data, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]


def diabetes() -> tuple[Tensor, Tensor]:
    bunch = load_diabetes(scaled=True)
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    inputs, targets = (torch.tensor(part, dtype=torch.float32)[order] for part in (bunch.data, bunch.target))
    return inputs / inputs.std(0), ((targets - targets.mean()) / targets.std())[:, None]


def copying(length: int = 10) -> tuple[Tensor, Tensor]:
    labels = torch.randint(8, (2000,), generator=torch.Generator().manual_seed(1))
    inputs = torch.zeros(2000, length, 9)
    inputs[torch.arange(2000), 0, labels] = 1
    inputs[:, 1:, 8] = 1
    return inputs, labels


def adding(length: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.zeros(2000, length, 2)
    inputs[:, :, 0] = torch.rand(2000, length, generator=generator)
    marks = torch.stack([torch.randperm(length, generator=generator)[:2] for _ in range(2000)])
    inputs[:, :, 1].scatter_(1, marks, 1.0)
    return inputs, (inputs[:, :, 0] * inputs[:, :, 1]).sum(1, keepdim=True)


def text(length: int = 24) -> tuple[Tensor, Tensor]:
    """Make text whose next letter hangs on the two before it, four choices each: at best about 0.5 can be guessed."""
    rng = np.random.default_rng(2)
    table = rng.integers(16, size=(16, 16, 4))
    letters = [0, 1]
    for choice in rng.choice(4, p=(0.55, 0.25, 0.15, 0.05), size=2000 * length):
        letters.append(int(table[letters[-2], letters[-1], choice]))
    whole = torch.tensor(letters[: 2000 * length + 1])
    return whole[:-1].view(2000, length), whole[1:].view(2000, length)


def deep(activation: type[nn.Module], depth: int, features: int = 64, outputs: int = 10) -> nn.Sequential:
    widths = [features] + [64] * depth
    layers = [part for wide in pairwise(widths) for part in (nn.Linear(*wide), activation())]
    return nn.Sequential(*layers, nn.Linear(64, outputs))


def convolutional() -> nn.Sequential:
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    layers = (first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers)


class Reader(nn.Module):
    """A recurrent layer read out at its last time step."""

    def __init__(self, kind: type[nn.RNNBase], features: int, outputs: int) -> None:
        super().__init__()
        self.rnn, self.out = kind(features, 32, batch_first=True), nn.Linear(32, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, time, features) to (batch, outputs)."""
        return self.out(self.rnn(inputs)[0][:, -1])


class Writer(nn.Module):
    """A causal transformer of two layers over 16 letters."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(16, 32), nn.Parameter(torch.randn(24, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, time) letters to (batch, time, 16)."""
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        return self.out(self.body(self.letters(inputs) + self.places, mask=mask, is_causal=True))


def jobs() -> tuple[Job, ...]:
    momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    gentle = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    adam, quick = partial(torch.optim.Adam, lr=1e-3), partial(torch.optim.Adam, lr=5e-3)
    pictures, letters, patients = digits(), text(), diabetes()
    relu, tanh, gelu = partial(deep, nn.ReLU, 6), partial(deep, nn.Tanh, 6), partial(deep, nn.GELU, 8)
    fit = partial(deep, nn.ReLU, 2, 10, 1)
    return (
        Job(name="ReLU 6, SGD", model=relu, optimizer=momentum, data=pictures),
        Job(name="tanh 6, SGD", model=tanh, optimizer=momentum, data=pictures),
        Job(name="conv, SGD", model=convolutional, optimizer=momentum, data=pictures),
        Job(name="diabetes, SGD", model=fit, optimizer=gentle, data=patients),
        Job(name="ReLU 6, Adam", model=relu, optimizer=adam, data=pictures),
        Job(name="tanh 6, Adam", model=tanh, optimizer=adam, data=pictures),
        Job(name="GELU 8, Adam", model=gelu, optimizer=adam, data=pictures),
        Job(name="conv, Adam", model=convolutional, optimizer=adam, data=pictures),
        Job(name="LSTM copy, Adam", model=partial(Reader, nn.LSTM, 9, 8), optimizer=quick, data=copying()),
        Job(name="GRU adding, Adam", model=partial(Reader, nn.GRU, 2, 1), optimizer=quick, data=adding()),
        Job(name="transformer, Adam", model=Writer, optimizer=quick, data=letters, batch=16),
        Job(name="diabetes, Adam", model=fit, optimizer=adam, data=patients),
    )


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return functional.mse_loss(output, target)
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


@torch.no_grad()
def reached_by(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    output = model(inputs)
    if not output.isfinite().all():
        return -1.0
    if targets.is_floating_point():
        return max(-1.0, 1 - ((output - targets).square().mean() / targets.var()).item())
    return (output.argmax(-1) == targets).float().mean().item()


def bad_steps(drill: str, steps: int, seed: int) -> set[int]:
    """Draw five stretches of one to three steps after the first 50, or three single ones among the first 25."""
    rng = np.random.default_rng(seed)
    if drill.startswith("early"):
        return {int(step) for step in rng.choice(np.arange(1, 25), 3, replace=False)}
    starts = rng.choice(np.arange(50, steps - 20), 5, replace=False)
    return {int(start) + more for start in starts for more in range(rng.integers(1, 4))}


def trained(job: Job, name: str, drill: str, seed: int) -> Row:
    torch.manual_seed(seed)
    model, (inputs, targets), policy = job.model(), job.data, POLICIES[name]
    known, optimizer = len(inputs) * 3 // 4, job.optimizer(model.parameters())
    generator, clipped, state = torch.Generator().manual_seed(seed), 0, policy.init(1)
    factor = float(drill.split("x")[1]) if drill else 1.0
    bad = bad_steps(drill, job.steps, seed) if drill else set()
    for step in range(job.steps):
        part = torch.randint(known, (job.batch,), generator=generator)
        optimizer.zero_grad()
        loss = loss_of(model(inputs[part]), targets[part]) * (factor if step in bad else 1.0)
        loss.backward()
        grads = [parameter.grad for parameter in model.parameters()]
        decision = policy(torch.nn.utils.get_total_norm(grads).numpy().reshape(1), state)
        state, scale = decision.state, float(decision.scale[0])
        if bool(decision.skip[0]):
            continue
        if scale < 1:
            clipped += step not in bad
            for grad in grads:
                grad.mul_(scale)
        optimizer.step()
    reached = reached_by(model, inputs[known:], targets[known:])
    return Row(job=job.name, policy=name, drill=drill, seed=seed, clipped=clipped / job.steps, reached=reached)


def trainings(drills: tuple[str, ...], names: tuple[str, ...]) -> Iterator[Row]:
    print(f"\n{'clipped % / reached':28}" + "".join(f"{name:>14}" for name in names))
    for job in jobs():
        for drill in drills:
            if drill and "SGD" not in job.name:
                continue
            print(f"{job.name:18}{drill:10}", end="")
            for name in names:
                rows = [trained(job, name, drill, seed) for seed in SEEDS]
                clipped, reached = (
                    statistics.fmean(getattr(r, field) for r in rows) for field in ("clipped", "reached")
                )
                print(f"{100 * clipped:7.1f} {reached:6.3f}", end="", flush=True)
                yield from rows
            print()


def scales(policy: AbstractPolicy, norms: np.ndarray) -> np.ndarray:
    state, found = policy.init(1), []
    for norm in norms.astype(np.float32):
        decision = policy(norm.reshape(1), state)
        state = decision.state
        found.append(float(decision.scale[0]))
    return np.array(found)


def levels() -> dict[str, dict[str, float]]:
    """Take made-up norms, 1 with 1 % of noise unless said: the share clipped, or what is let through of a spike."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 3000)
    after = np.arange(3000) >= 300
    clipped = {
        "noise of 1 %": 1 + 0.01 * noise,
        "noise of 20 %": 1 + 0.2 * noise,
        "lognormal, sigma 0.5": np.exp(0.5 * noise),
        "lognormal, sigma 1": np.exp(noise),
        "1 % more each step from 300": 1.01 ** np.maximum(np.arange(3000) - 300, 0) * (1 + 0.01 * noise),
        **{f"{rise} times from step 300": (1 + 0.01 * noise) * np.where(after, rise, 1) for rise in (3, 10, 100)},
    }
    found = {f"clipped %, {what}": (norms, lambda scale: 100 * (scale < 1).mean()) for what, norms in clipped.items()}
    for spike in (3, 5, 10, 100, 1e6):
        norms = np.where(np.arange(301) == 300, spike, 1 + 0.01 * noise[:301])
        found[f"let through of {spike:g}"] = (norms, lambda scale, spike=spike: spike * scale[-1])
    names = tuple(name for name in POLICIES if name != "none")
    print(f"\n{'made-up norms':38}" + "".join(f"{name:>12}" for name in names))
    table = {}
    for what, (norms, number) in found.items():
        table[what] = {name: float(number(scales(POLICIES[name], norms))) for name in names}
        print(f"{what:38}" + "".join(f"{value:12.2f}" for value in table[what].values()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    table, names = levels(), tuple(POLICIES)
    rows = list(trainings(("",), names))
    print(f"{'clipped %, all trainings':28}", end="")
    for name in names:
        print(f"{100 * statistics.fmean(row.clipped for row in rows if row.policy == name):7.1f}{'':7}", end="")
    print()
    rows += trainings(("x4", "x10", "x100", "x10000", "early x10000"), names)
    if output is not None:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        output.write_text(
            json.dumps({"facts": facts, "levels": table, "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
