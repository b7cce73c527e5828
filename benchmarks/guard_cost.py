"""What a guard costs beside `clip_grad_norm_`, on the part of a training step that comes after backward.

    python benchmarks/guard_cost.py -o cost.json

Interleaved in one process, in CPU time of the process, which other work on the machine disturbs less. Every figure is a
median ratio to the plain optimizer step of the same round, with quartiles. The null is the plain step of a second copy.
Gradients are the same at every step; the rows with a hit are clipped at every step, the others at none.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from evengrad.clip import ByGlobalNorm
from evengrad.guard import Guard


def small_tensors() -> nn.Module:
    return nn.ModuleList(nn.Linear(8, 8, bias=bool(number % 2)) for number in range(667))


def gpt_like() -> nn.Module:
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True)
    return nn.Sequential(nn.Embedding(256, 384), nn.TransformerEncoder(layer, 6, enable_nested_tensor=False))


WORKLOADS = {"1000 small tensors": small_tensors, "GPT-like": gpt_like}


class Lane:
    """One copy of the workload with one way to treat its gradients."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        generator = torch.Generator().manual_seed(1)
        self.grads = [torch.randn(p.shape, generator=generator) * 1e-3 for p in self.parameters]
        self.before: Callable[[], object] = lambda: None
        self.guard: Guard | None = None

    def timed(self) -> float:
        """Time one step after a backward that is only pretended."""
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad.clone()
        start = time.process_time()
        self.before()
        self.optimizer.step()
        return time.process_time() - start


def lanes(make: Callable[[], nn.Module]) -> dict[str, Lane]:
    names = ("plain", "null", "clip, no hit", "guard, no hit", "clip, hit", "guard, hit")
    found = {name: Lane(make) for name in names}
    for name, max_norm in (("clip, no hit", 1e9), ("clip, hit", 1e-3)):
        lane = found[name]
        lane.before = lambda lane=lane, most=max_norm: nn.utils.clip_grad_norm_(lane.parameters, most)
    for name, clip in (("guard, no hit", None), ("guard, hit", ByGlobalNorm(1e-3))):
        found[name].guard = Guard(found[name].model, found[name].optimizer, clip=clip)
    return found


def measured(make: Callable[[], nn.Module], rounds: int) -> dict[str, object]:
    found = lanes(make)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 30):  # past the guard's own warm-up
        order = list(found) if number % 2 else list(reversed(found))
        for name in order:
            seconds = found[name].timed()
            if number >= 30:
                times[name].append(seconds)
    for name, lane in found.items():
        if lane.guard is not None:
            hits = sum(reading.scale < 1 for reading in lane.guard.record.readings)
            assert lane.guard.skips == 0, f"{name}: {lane.guard.skips} steps were skipped"
            assert hits == (lane.guard.step if name == "guard, hit" else 0), f"{name}: {hits} hits"
    ratios = {name: [a / b for a, b in zip(values, times["plain"], strict=True)] for name, values in times.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in ratios.items() if name != "plain"}
    added = {name: q[1] - 1 for name, q in quartiles.items()}
    return {
        "tensors": len(found["plain"].parameters),
        "elements": sum(parameter.numel() for parameter in found["plain"].parameters),
        "plain_ms": 1000 * statistics.median(times["plain"]),
        "ratio_quartiles": quartiles,
        "guard_share_of_clip": {
            hit: added[f"guard, {hit}"] / added[f"clip, {hit}"] if added[f"clip, {hit}"] > 0 else math.nan
            for hit in ("no hit", "hit")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "workloads": {name: measured(make, arguments.rounds) for name, make in WORKLOADS.items()},
    }
    for name, row in result["workloads"].items():
        print(f"{name}: {row['tensors']} tensors, {row['elements']:,} elements, plain step {row['plain_ms']:.2f} ms")
        for lane, (low, middle, high) in row["ratio_quartiles"].items():
            print(f"  {lane:<14} {middle:5.3f}   ({low:.3f} to {high:.3f})")
        shares = ", ".join(f"{hit} {share:.2f}" for hit, share in row["guard_share_of_clip"].items())
        print(f"  what the guard adds as a share of what clip_grad_norm_ adds: {shares}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
