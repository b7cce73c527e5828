"""Train every program with and without its fault, in a plain loop, to see that the one fails and the other does not.

python benchmarks/clinic/verify.py [NUMBER ...] [--seeds 0 1 2]
"""

import argparse
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from evengrad import Task
from evengrad.nouns import output_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/

from clinic import EXTRA, HEALTHY, LOOPS, PROGRAMS, Healthy, Loop, Program


def trained(task: Task, seed: int) -> float:
    """Train from a seed and return the metric; NaN where the loss raised."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model)
    schedule = task.schedule(optimizer) if task.schedule else None
    torch.manual_seed(seed)
    model.train()
    done = 0
    while done < task.steps:
        for inputs, target in task.train():
            if done == task.steps:
                break
            optimizer.zero_grad()
            try:
                loss = task.loss(output_of(model, inputs), target)
            except RuntimeError:  # torch's cross entropies refuse what is not a probability any more
                return math.nan
            loss.backward()
            done += 1
            if not loss.isfinite():
                done = task.steps
                break
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if task.after_step is not None:
                task.after_step(model)
    model.eval()
    with torch.no_grad():
        return task.validate(model)


def row(task: Task, seeds: Iterable[int]) -> tuple[list[float], float]:
    started = time.perf_counter()
    return [trained(task, seed) for seed in seeds], time.perf_counter() - started


def shown(metrics: list[float]) -> str:
    return " ".join(f"{metric:8.3g}" for metric in metrics)


def verify(entry: Program | Healthy, seeds: list[int]) -> bool:
    """Print a line; return whether the fix, or the healthy training, reaches what it should."""
    if isinstance(entry, Healthy):
        good, good_s = row(entry.task, seeds)
        print(f"     {entry.name:66.66} {'':{9 * len(seeds)}}", end="")
    else:
        bad, bad_s = row(entry.faulty, seeds)
        good, good_s = row(entry.fixed, seeds)
        print(f"{entry.number:4} {entry.name:66.66} {shown(bad)} ", end="")
        good_s = max(bad_s, good_s)
    enough = min(good) >= entry.reaches
    print(
        f"| {shown(good)}  of {entry.reaches:4.2f} {'   ' if enough else 'LOW'} {good_s / len(seeds):5.1f} s",
        flush=True,
    )
    return enough


class Losses:
    """Keeps the losses of a loop that it is given as its guard."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def loss(self, loss: Tensor) -> Tensor:
        self.seen.append(float(loss.detach()))
        return loss


def show(loop: Loop, seeds: list[int]) -> None:
    """Print a line with the mean loss of the last 20 steps; there is no fix to compare with."""
    started = time.perf_counter()
    last: list[float] = []
    for seed in seeds:
        torch.manual_seed(seed)
        watched = loop.run(lambda model, optimizer: Losses())
        last += [sum(one.seen[-20:]) / 20 for one in (watched if isinstance(watched, list) else [watched])]
    seconds = (time.perf_counter() - started) / len(seeds)
    print(f"{loop.number:4} {loop.name:66.66} {shown(last)}  loss at the end {seconds:5.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train every program with and without its fault.")
    parser.add_argument("numbers", nargs="*", type=int, help="programs; all and the healthy ones when none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [program for program in (*PROGRAMS, *EXTRA) if not given.numbers or program.number in given.numbers]
    results = [verify(entry, given.seeds) for entry in (*chosen, *(() if given.numbers else HEALTHY))]
    for loop in LOOPS:
        if not given.numbers or loop.number in given.numbers:
            show(loop, given.seeds)
    print(f"{sum(results)} of {len(results)} reach what they should")


if __name__ == "__main__":
    main()
