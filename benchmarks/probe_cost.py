"""What the live probe costs: whole training steps of four models, watched with and without sampling, and not at all.

    python benchmarks/probe_cost.py -o probe.json

Lanes are copies of one training in one process: no guard, a second one without a guard (the null: what is measured
where nothing differs), a guard that only watches and never samples, and one with the default sampling. All of them make
their steps in turn, one step each, in an order that turns round with every round, so that what else runs on the machine
meets all alike. Times are CPU times of the process, which other work disturbs less than the clock.

Printed for each lane: what its steps take more than the plain ones of the same rounds, medians over the sampled steps
and over the others, weighted by their number. What the default sampling makes is told by the sampled steps alone: their
ratio to the same steps of the guard that never samples, times their share of all, for on the others the two guards do
the same. To it comes the judging of the rules for live messages, whose time is measured in place. So is, in the lane
that samples, the time of the guard's own code for it, which does not hang on what else the machine does (arming,
taking, weights, ends, sending off, with what is made once at the first; the hooks within forward and backward are not
in it). The promise: at most 1.5 % of a step for the first three, and 10 % for a thousand small tensors.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from guard_cost import WORKLOADS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evengrad.diagnose import findings_of
from evengrad.guard import Guard
from evengrad.nouns import Record

LANES = ("plain", "null", "watch", "samples")
PROMISES = {"GPT-like, 10M": 1.5, "ResNet-like": 1.5, "LSTM": 1.5, "1000 small tensors": 10.0}


class InPlace:
    """Adds up the CPU time that calls of some methods take, those within each other once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, thing: object, name: str) -> None:
        inner = getattr(thing, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return inner(*args, **kwargs)
            self._depth, start = 1, time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start
                self._depth = 0

        setattr(thing, name, timed)


class Lane:
    """One training, with a guard or without."""

    def __init__(self, name: str, make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor]) -> None:
        torch.manual_seed(0)
        self.batch, self.model = batch, make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.guard: Guard | None = None
        self.own, self.judging = InPlace(), InPlace()
        if name in {"watch", "samples"}:
            every: Any = None if name == "watch" else "auto"
            self.guard = Guard(self.model, self.optimizer, clip=False, sample_every_steps=every)
            sampling, voice = self.guard._books.sampling, self.guard._books.voice
            for method in ("begin", "look", "take", "finish"):
                self.own.wrap(sampling, method)
            self.own.wrap(sampling.schedule, "note")
            self.judging.wrap(voice, "judge")

    def step(self) -> float:
        """Train one step; returns its CPU seconds."""
        inputs, targets = self.batch
        start = time.process_time()
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(inputs), targets)
        if self.guard is not None:
            self.guard.loss(loss)
        loss.backward()
        self.optimizer.step()
        return time.process_time() - start


def measured(make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], steps: int) -> dict[str, Any]:
    lanes = {name: Lane(name, make, batch) for name in LANES}
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for number in range(steps):
        order = list(lanes) if number % 2 else list(reversed(lanes))
        for name in order:
            times[name].append(lanes[name].step())
    guard = lanes["samples"].guard
    assert guard is not None
    sampled = [reading.step for reading in guard.record.readings if reading.weights]
    losses = {name: float(cross_entropy(lane.model(batch[0]), batch[1]).detach()) for name, lane in lanes.items()}
    assert len(set(losses.values())) == 1, f"watching has changed the run: {losses}"
    plain = statistics.median(times["plain"])
    percents = {name: percent(times, name, sampled) for name in LANES if name != "plain"}
    judging = 100 * lanes["samples"].judging.seconds / (steps * plain)
    return {
        "step_ms": 1000 * plain,
        "sampled_steps": len(sampled),
        "steps": steps,
        "percent": percents,
        "sampling_percent": 100 * (ratio(times, "samples", "watch", sampled) - 1) * len(sampled) / steps,
        "judging_percent": judging,
        "in_place_percent": 100 * lanes["samples"].own.seconds / (steps * plain),
        "sampled_step_ratio": ratio(times, "samples", "watch", sampled),
        "later_percent": ratio(times, "samples", "watch", sampled) - 1,
    }


def ratio(times: dict[str, list[float]], name: str, other: str, steps: Iterable[int]) -> float:
    """Return the median ratio of a lane's steps to the same steps of another."""
    return statistics.median(times[name][step] / times[other][step] for step in steps)


def percent(times: dict[str, list[float]], name: str, sampled: list[int]) -> float:
    """Return what a lane takes more than the plain one, in percent, sampled steps and others by their number."""
    steps = len(times[name])
    others = sorted(set(range(steps)) - set(sampled))
    added = [(len(some), ratio(times, name, "plain", some) - 1) for some in (sampled, others)]
    return 100 * sum(count * value for count, value in added) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help="the beginning of a workload's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    findings_of(Record())  # imports the rules, once for a process
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "steps": arguments.steps,
        "workloads": {},
    }
    for name, (make, batch) in WORKLOADS.items():
        if not name.startswith(arguments.only):
            continue
        row = result["workloads"][name] = measured(make, batch(), arguments.steps)
        row["promise_percent"] = PROMISES[name]
        print(f"{name}: plain step {row['step_ms']:.1f} ms, {row['sampled_steps']} of {row['steps']} steps sampled")
        for lane, value in row["percent"].items():
            print(f"  {lane:<8} {value:+6.2f} % of a plain step")
        both = row["sampling_percent"] + row["judging_percent"]
        print(f"  a sampled step takes {row['sampled_step_ratio']:.3f} of one that is only watched")
        print(f"  sampling {row['sampling_percent']:.2f} %, judging {row['judging_percent']:.2f} %: {both:.2f} %")
        print(f"  promised {PROMISES[name]} %. In place, without the hooks: {row['in_place_percent']:.2f} %")
        print(f"  later, at one step in a hundred: {row['later_percent']:.2f} %", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
