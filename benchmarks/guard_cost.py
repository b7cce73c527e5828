"""What the whole guard costs beside `clip_grad_norm_`, on real training steps of four models.

    python benchmarks/guard_cost.py -o cost.json

Lanes are copies of one training, each with its own model, optimizer and run log, interleaved in one process. Timed is
the part of a step after backward (clip, guard, optimizer), in CPU time of the process, which other work on the machine
disturbs less than the clock; the forward and backward in between leave the caches as a training does. A lane makes four
steps at a time, and the first, which finds the caches as another lane has left them, does not count. For the lane that
also samples layers at every tenth step the forward and backward are timed too, against those of the plain lane. Every
figure is a median ratio to the plain lane of the same round, with quartiles. The null is a second plain lane.

Nothing is clipped in the rows without a hit, everything in those with one: counted and asserted.
"""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evengrad.clip import ByGlobalNorm, ByZScore
from evengrad.guard import Guard

SAMPLE_EVERY = 10
BLOCK = 4  # steps of a lane in a row; the first is not counted


class GptLike(nn.Module):
    """10M parameters: six transformer layers of width 384."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(256, 384)
        self.body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(384, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens))).flatten(0, 1)


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(before, after, 3, stride, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm_two(self.two(self.norm_one(self.one(x)).relu()))
        return (hidden + self.short(x)).relu()


def resnet_like() -> nn.Module:
    """11M parameters: ResNet-18 for small images, with a convolution in every shortcut."""
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), *blocks, *pool)


def small_tensors() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(500)))


class CharLstm(nn.Module):
    """3.5M parameters: two LSTM layers of 512 units over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(96, 128), nn.LSTM(128, 512, 2, batch_first=True)
        self.head = nn.Linear(512, 96)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens))[0]).flatten(0, 1)


def tokens(kinds: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(kinds, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1], drawn[:, 1:].flatten()


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator)


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, generator=generator), torch.randint(8, (16,), generator=generator)


WORKLOADS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "GPT-like, 10M": (GptLike, lambda: tokens(256, (2, 32))),
    "ResNet-like": (resnet_like, images),
    "1000 small tensors": (small_tensors, vectors),
    "LSTM": (CharLstm, lambda: tokens(96, (8, 32))),
}
LANES = ("plain", "null", "clip", "guard", "guard, samples", "clip, hit", "guard, hit")


class Lane:
    """One training with one way to treat its gradients."""

    def __init__(self, name: str, make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]) -> None:
        torch.manual_seed(0)
        self.name, self.batch, self.model = name, batch, make()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        self.before: Callable[[], object] = lambda: None
        self.guard: Guard | None = None
        if name.startswith("clip"):
            most = 1e-6 if "hit" in name else 1e9
            self.before = lambda: nn.utils.clip_grad_norm_(self.parameters, most)
        elif name.startswith("guard"):
            policy = ByGlobalNorm(1e-6) if "hit" in name else ByZScore()
            every = SAMPLE_EVERY if "samples" in name else None
            settings = {"log": tempfile.mkdtemp(), "sample_every_steps": every, "tell": False}
            self.guard = Guard(self.model, self.optimizer, clip=policy, **settings)

    def step(self) -> tuple[float, float]:
        """Train one step; returns the CPU seconds of forward and backward, and of what comes after."""
        inputs, targets = self.batch
        self.optimizer.zero_grad()
        start = time.process_time()
        loss = cross_entropy(self.model(inputs), targets)
        if self.guard is not None:
            self.guard.loss(loss)
        loss.backward()
        middle = time.process_time()
        self.before()
        self.optimizer.step()
        end = time.process_time()
        assert math.isfinite(float(loss.detach()))
        return middle - start, end - middle


def measured(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], rounds: int) -> dict[str, object]:
    lanes = {name: Lane(name, make, batch) for name in LANES}
    heads: dict[str, list[float]] = {name: [] for name in lanes}
    tails: dict[str, list[float]] = {name: [] for name in lanes}
    for number in range(rounds + 3):
        order = list(lanes) if number % 2 else list(reversed(lanes))
        for name in order:
            steps = [lanes[name].step() for _ in range(BLOCK)]
            if number >= 3:
                heads[name] += [head for head, _ in steps[1:]]
                tails[name] += [tail for _, tail in steps[1:]]
    for name, lane in lanes.items():
        if lane.guard is not None:
            hits = sum(reading.scale < 1 for reading in lane.guard.record.readings)
            assert lane.guard.skips == 0, f"{name}: {lane.guard.skips} steps were skipped"
            assert hits == (lane.guard.step if "hit" in name else 0), f"{name}: {hits} hits"
            lane.guard.detach()
    ratios = {name: [a / b for a, b in zip(values, tails["plain"], strict=True)] for name, values in tails.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in ratios.items() if name != "plain"}
    return {
        "tensors": len(lanes["plain"].parameters),
        "elements": sum(parameter.numel() for parameter in lanes["plain"].parameters),
        "step_ms": 1000 * statistics.median(map(sum, zip(heads["plain"], tails["plain"], strict=True))),
        "tail_ms": 1000 * statistics.median(tails["plain"]),
        "tail_ratio_quartiles": quartiles,
        "share_of_clip": shares(heads, tails),
        "whole_step_percent": percents(heads, tails),
    }


def is_sampled(k: int) -> bool:
    """Whether the k-th counted step of a lane is one at which layers are sampled."""
    block, place = divmod(k, BLOCK - 1)
    return ((block + 3) * BLOCK + place + 1) % SAMPLE_EVERY == 0


def added(times: dict[str, list[float]], name: str) -> float:
    """Return the median seconds that a lane adds to the plain one of the same round."""
    return statistics.median(a - b for a, b in zip(times[name], times["plain"], strict=True))


def sampling(heads: dict[str, list[float]]) -> float:
    """Return the mean seconds a step that sampling adds to forward and backward; medians of the sampled steps."""
    sampled = [k for k in range(len(heads["plain"])) if is_sampled(k)]
    pairs = [heads["guard, samples"][k] - heads["plain"][k] for k in sampled]
    return max(0.0, statistics.median(pairs)) / SAMPLE_EVERY


def shares(heads: dict[str, list[float]], tails: dict[str, list[float]]) -> dict[str, float]:
    """Return what the guard adds as a share of what `clip_grad_norm_` adds."""
    clip, hit = added(tails, "clip"), added(tails, "clip, hit")
    return {
        "guard": added(tails, "guard") / clip,
        "guard, samples": (statistics.fmean(tail_added(tails)) + sampling(heads)) / clip,
        "guard, hit": added(tails, "guard, hit") / hit,
        "null": added(tails, "null") / clip,
    }


def tail_added(tails: dict[str, list[float]]) -> list[float]:
    """Return what the sampling guard adds to the tail: sampled steps and others, by their medians and their number."""
    pairs = [a - b for a, b in zip(tails["guard, samples"], tails["plain"], strict=True)]
    sampled = [pair for k, pair in enumerate(pairs) if is_sampled(k)]
    others = [pair for k, pair in enumerate(pairs) if not is_sampled(k)]
    return [statistics.median(sampled)] + [statistics.median(others)] * (SAMPLE_EVERY - 1)


def percents(heads: dict[str, list[float]], tails: dict[str, list[float]]) -> dict[str, float]:
    """Return what is added to a whole step, in percent of a plain one."""
    step = statistics.median(map(sum, zip(heads["plain"], tails["plain"], strict=True)))
    seconds = {name: added(tails, name) for name in ("clip", "guard", "clip, hit", "guard, hit")}
    seconds["guard, samples"] = statistics.fmean(tail_added(tails)) + sampling(heads)
    return {name: 100 * value / step for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "workloads": {},
    }
    for name, (make, batch) in WORKLOADS.items():
        row = measured(make, batch(), arguments.rounds)
        result["workloads"][name] = row
        size = f"{row['tensors']} tensors, {row['elements']:,} elements"
        print(f"{name}: {size}, plain step {row['step_ms']:.1f} ms, of it after backward {row['tail_ms']:.2f} ms")
        for lane, (low, middle, high) in row["tail_ratio_quartiles"].items():
            print(f"  {lane:<16} {middle:5.3f}   ({low:.3f} to {high:.3f})")
        print("  as a share of what clip_grad_norm_ adds:", texts(row["share_of_clip"], "{:.2f}"))
        print("  of a whole step:", texts(row["whole_step_percent"], "{:+.2f} %"), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def texts(row: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in row.items())


if __name__ == "__main__":
    main()
