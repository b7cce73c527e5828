"""What a checkup costs, in plain training steps of the same model, with and without counterfactuals.

    python benchmarks/checkup_cost.py -o checkup_cost.json

A plain step is forward, backward and a fused AdamW step. Timed in CPU time of the process on one thread; checkup and
plain steps take turns, and every figure is a median of ratios with quartiles. Counterfactuals are tried only where
something was found, so these are measured on sick models: layers that vanish, explode, die, or forget.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from guard_cost import WORKLOADS, tokens
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evengrad import checkup

ROUNDS = 9
Workload = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]


def deep(activation: type[nn.Module], std: float | None) -> nn.Module:
    """Give twelve layers of 512 units, with the initial weights of torch or drawn with a standard deviation."""
    layers = [layer for _ in range(12) for layer in (nn.Linear(512, 512), activation())]
    model = nn.Sequential(*layers, nn.Linear(512, 10))
    for module in model.modules():
        if std is not None and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
    return model


def convolutions() -> nn.Module:
    """Give ten convolutions without normalisation whose weights are drawn far too large."""
    layers = [layer for _ in range(9) for layer in (nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.5)
    return model


class Forgetful(nn.Module):
    """A recurrent network whose state halves at every step, judged by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(16, 64), nn.RNN(64, 128, batch_first=True), nn.Linear(128, 10)
        with torch.no_grad():
            nn.init.orthogonal_(self.body.weight_hh_l0, 0.4)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.body(self.embed(words))[0][:, -1])


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(128, 512, generator=generator), torch.randint(10, (128,), generator=generator)


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)


def sentences() -> tuple[Tensor, Tensor]:
    words, _ = tokens(16, (32, 60))
    return words, words[:, 0] % 10


SICK: dict[str, Workload] = {
    "12 sigmoid layers": (lambda: deep(nn.Sigmoid, None), vectors),
    "12 ReLU layers, N(0, 0.5)": (lambda: deep(nn.ReLU, 0.5), vectors),
    "10 convolutions, N(0, 0.5)": (convolutions, pictures),
    "RNN, 60 steps": (Forgetful, sentences),
}


def cpu_s(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def ratios(workload: Workload, *, counterfactuals: bool) -> tuple[list[float], int]:
    """Measure checkups in plain steps; also how many treatments were tried."""
    torch.manual_seed(0)
    model, batch = workload[0](), workload[1]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tried: list[int] = []

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    def look() -> None:
        seen: list[str] = []
        checkup(
            model,
            cross_entropy,
            batch,
            optimizer,
            counterfactuals=counterfactuals,
            progress=lambda what, done, total: seen.append(what),
        )
        tried.append(len(seen))

    for _ in range(3):
        step()
    look()
    found = []
    for _ in range(ROUNDS):
        plain = [cpu_s(step) for _ in range(5)]
        found.append(cpu_s(look) / statistics.median(plain))
    return found, tried[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    rows = []
    print(f"{'model':<28} {'checkup':>24} {'tried':>6} {'plain steps':>12}  quartiles")
    for name, workload in (WORKLOADS | SICK).items():
        for counterfactuals in (False, True) if name in SICK else (False,):
            found, tried = ratios(workload, counterfactuals=counterfactuals)
            low, middle, high = statistics.quantiles(found, n=4)
            kind = "with counterfactuals" if counterfactuals else "without"
            print(f"{name:<28} {kind:>24} {tried:>6} {middle:>12.2f}  {low:.2f} to {high:.2f}", flush=True)
            rows.append({"model": name, "kind": kind, "tried": tried, "steps": middle, "quartiles": [low, high]})
    if output is not None:
        facts = {"torch": torch.__version__, "threads": 1, "machine": platform.machine()}
        output.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
