"""What it costs to measure, decide and clip, beside `clip_grad_norm_`, on the path of the optimizer alone.

    python benchmarks/apply_cost.py -o apply.json

No forward and no backward: gradients are filled once and written anew from a copy before every step, untimed, which
also leaves the caches alike for every lane, as a backward leaves them. Lanes are interleaved in one process. All work
on the same weights, gradients and moments: each has an optimizer object of its own for its guard to be attached to,
and the fused AdamW objects share one dict of state, so that 124M parameters take 2.5 GB with any number of lanes, and
no lane runs on memory that lies better. A lane makes four steps at a time; the first, which finds the caches as
another lane has left them, is not counted. Timed is CPU time of the process with one thread, which other work on the
machine disturbs less than the clock; with `--threads` above 1 it is the clock, since CPU time adds threads up. Every
figure is a median ratio to the base lane's step of the same round, with quartiles. The nulls are second base lanes.

Two kinds of lanes. Those without a step: `clip_grad_norm_` alone (the base), and whole guards on an optimizer whose
step does nothing, so that hooks, norms, decision and books are timed and no arithmetic of an optimizer. Unit-wise AGC
is timed inside of a guard, which reads the gradients once more to find what is not finite, and alone; with every unit
hit and with none; with units in rows (linear layers) and in columns (the `Conv1D` of GPT-2; the rows are the same
memory seen as linear layers). No layer is excluded. And those with a fused AdamW step: `clip_grad_norm_` before it is
the base; everything is clipped in every step, to half of its norm, except where the name says otherwise.

Goals, as ratios to the base: a guard with nothing to clip, 124M parameters: at most 0.6. Folded clip and step: at most
0.93 (124M) and 0.80 (1000 tensors of 64 x 64). Unit-wise AGC: at most 3.

The default lane is what the guard chooses by itself, on a CPU.

Hits, skips and the optimizer's steps are counted and asserted: a norm that overflows would skip every step, and be
quick.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evengrad.clip import ByGlobalNorm
from evengrad.clip.transforms import ByUnitWeightNorm, Target
from evengrad.guard import Guard

BLOCK = 4  # steps of a lane in a row; the first is not counted
WARM_UP = 1  # rounds that are not counted
NEVER, ALWAYS = 1e6, 1e-9  # AGC's ratio of norms at which no unit, or every unit, is clipped
TIMES = 3.0  # the goal of AGC
GOALS = {
    "GPT-2, 124M": {"guard, no hit": 0.6, "default, step": 0.93, "folded, step": 0.93},
    "1000 x 64x64": {"default, step": 0.80, "folded, step": 0.80},
}


class Conv1D(nn.Module):
    """A linear layer that keeps its weight transposed, under the name by which the guard knows it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))


def gpt2() -> nn.Module:
    """124,439,808 parameters in 148 tensors, shaped as those of GPT-2; never run."""
    layers: list[nn.Module] = [nn.Embedding(50257, 768), nn.Embedding(1024, 768)]
    for _ in range(12):
        layers += [nn.LayerNorm(768), Conv1D(768, 2304), Conv1D(768, 768)]
        layers += [nn.LayerNorm(768), Conv1D(768, 3072), Conv1D(3072, 768)]
    return nn.ModuleList([*layers, nn.LayerNorm(768)])


def small() -> nn.Module:
    return nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(1000)])


def as_linear(model: nn.Module) -> nn.Module:
    """See the same memory as a model of linear layers, which keep their outputs in rows; gradients too."""
    twin = nn.ModuleList()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        kinds = {Conv1D: nn.Linear, nn.Embedding: nn.Embedding}
        seen: nn.Module = kinds.get(type(module), nn.LayerNorm)(*own["weight"].shape, device="meta")
        for name, parameter in own.items():
            shape = seen.get_parameter(name).shape
            view = nn.Parameter(parameter.data.view(shape))
            view.grad = parameter.grad.view(shape)
            setattr(seen, name, view)
        twin.append(seen)
    return twin


class Idle(torch.optim.Optimizer):
    """An optimizer whose step does nothing."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: object = None) -> None:
        """Do nothing; hooks run before and after."""


@dataclass
class Lane:
    """One way to treat the gradients of a step."""

    name: str
    act: Callable[[], object]
    base: str
    touches: bool  # whether every gradient is changed, or none
    guard: Guard | None = None
    hits: bool = False
    steps: bool = False  # whether the optimizer steps
    seconds: list[float] = field(default_factory=list)


class Bench:
    """The tensors that all lanes share, and the lanes."""

    def __init__(self, model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model, self.parameters = model, list(model.parameters())
        for parameter in self.parameters:
            parameter.data.normal_(0, 0.02, generator=generator)
            parameter.grad = torch.empty_like(parameter).normal_(0, 1e-3, generator=generator)
        self.grads = [parameter.grad for parameter in self.parameters]
        self.kept = [grad.clone() for grad in self.grads]
        self.norm = float(torch.stack([grad.double().norm() for grad in self.grads]).norm())
        self.first = self.fused()
        self.lanes: list[Lane] = []
        self._bare_lanes()
        self._agc_lanes("columns" if any(isinstance(one, Conv1D) for one in model.modules()) else "rows", model)
        if any(isinstance(one, Conv1D) for one in model.modules()):
            self._agc_lanes("rows", as_linear(model))
        self._step_lanes()

    def fused(self) -> torch.optim.AdamW:
        """Make an optimizer object over the shared parameters and moments."""
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-7, fused=True)
        if hasattr(self, "first"):
            optimizer.state = self.first.state
        return optimizer

    def clip(self, most: float) -> Callable[[], object]:
        """Make torch's own call."""
        return lambda: nn.utils.clip_grad_norm_(self.parameters, most)

    def _bare_lanes(self) -> None:
        base = "clip_grad_norm_"
        for name in (base, "null"):
            self.lanes.append(Lane(name, self.clip(2 * self.norm), base, touches=False))
        idle = Idle(self.parameters)
        guard = Guard(self.model, idle, sample_every_steps=None, tell=False)
        self.lanes.append(Lane("guard, no hit", idle.step, base, touches=False, guard=guard))

    def _agc_lanes(self, units: str, model: nn.Module) -> None:
        for hits in (False, True):
            policy = ByUnitWeightNorm(clip_factor=ALWAYS if hits else NEVER, exclude_head=False)
            text = f"AGC, {units}, {'all hit' if hits else 'no hit'}"
            idle = Idle(list(model.parameters()))
            targets = targets_of(model, idle)
            alone = alone_of(policy, targets)
            self.lanes.append(Lane(text, alone, "clip_grad_norm_", touches=hits))
            guard = Guard(model, idle, clip=policy, sample_every_steps=None, tell=False)
            self.lanes.append(Lane(f"guard with {text}", idle.step, "clip_grad_norm_", touches=hits, guard=guard))

    def _step_lanes(self) -> None:
        base, half = "clip, step", self.norm / 2

        def clipped(optimizer: torch.optim.Optimizer, most: float) -> Callable[[], object]:
            return lambda: (nn.utils.clip_grad_norm_(self.parameters, most), optimizer.step())

        for name in (base, "null, step"):
            self.lanes.append(Lane(name, clipped(self.fused(), half), base, touches=True, steps=True))
        self.lanes.append(Lane("step alone", self.fused().step, base, touches=False, steps=True))
        for way in (None, "folded", "foreach", "conditional"):
            optimizer = self.fused()
            guard = Guard(
                self.model, optimizer, clip=ByGlobalNorm(half), apply=way, sample_every_steps=None, tell=False
            )
            lane = Lane(
                f"{way or 'default'}, step", optimizer.step, base, touches=True, guard=guard, hits=True, steps=True
            )
            self.lanes.append(lane)  # the kernel writes back what it has folded
        optimizer = self.fused()
        guard = Guard(self.model, optimizer, sample_every_steps=None, tell=False)
        self.lanes.append(Lane("guard, no hit, step", optimizer.step, base, touches=False, guard=guard, steps=True))

    def restore(self) -> None:
        """Write the gradients anew."""
        torch._foreach_copy_(self.grads, self.kept)

    def block(self, lane: Lane, *, count: bool, clock: Callable[[], float]) -> None:
        """Make the steps of a lane that come in a row."""
        for number in range(BLOCK):
            self.restore()
            start = clock()
            lane.act()
            end = clock()
            if number:
                lane.seconds += [end - start] if count else []
            else:
                changed = sum(not torch.equal(a, b) for a, b in zip(self.grads, self.kept, strict=True))
                expected = len(self.grads) if lane.touches else 0
                assert changed == expected, f"{lane.name}: {changed} gradients were changed, not {expected}"

    def check(self, steps: int) -> None:
        """Assert that every lane did what its name says in all of its steps."""
        for lane in self.lanes:
            if lane.guard is not None:
                assert lane.guard.step == steps, f"{lane.name}: {lane.guard.step} steps of {steps}"
                assert lane.guard.skips == 0, f"{lane.name}: {lane.guard.skips} steps were skipped"
                expected = steps if lane.hits else 0
                assert lane.guard.clips == expected, f"{lane.name}: {lane.guard.clips} clips, not {expected}"
                lane.guard.detach()
        made = {float(state["step"]) for state in self.first.state.values()}
        expected = float(steps * sum(lane.steps for lane in self.lanes))
        assert made == {expected}, f"the optimizer made {made} steps, not {expected}"


def targets_of(model: nn.Module, optimizer: Idle) -> list[Target]:
    group = optimizer.param_groups[0]
    owners = [(f"{place}.{name}", one, p) for place, one in model.named_modules() for name, p in own_parameters(one)]
    return [
        Target(name=name, parameter=p, module=owner, last=False, optimizer=optimizer, group=group)
        for name, owner, p in owners
    ]


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def alone_of(policy: ByUnitWeightNorm, targets: list[Target]) -> Callable[[], object]:
    def act() -> None:
        with torch.no_grad():
            policy.before_(targets, {})

    return act


def measured(model: nn.Module, rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    bench = Bench(model)
    for number in range(rounds + WARM_UP):
        for lane in bench.lanes if number % 2 else bench.lanes[::-1]:
            bench.block(lane, count=number >= WARM_UP, clock=clock)
    bench.check((rounds + WARM_UP) * BLOCK)
    seconds = {lane.name: lane.seconds for lane in bench.lanes}
    ratios = {
        lane.name: statistics.quantiles([a / b for a, b in zip(lane.seconds, seconds[lane.base], strict=True)], n=4)
        for lane in bench.lanes
    }
    return {
        "tensors": len(bench.parameters),
        "elements": sum(parameter.numel() for parameter in bench.parameters),
        "base": {lane.name: lane.base for lane in bench.lanes},
        "median_ms": {name: 1000 * statistics.median(times) for name, times in seconds.items()},
        "ratio_quartiles": ratios,
    }


def goal_of(workload: str, lane: str) -> float | None:
    return TIMES if "AGC" in lane else GOALS[workload].get(lane)


def show(workload: str, row: dict[str, object]) -> None:
    print(f"{workload}: {row['tensors']} tensors, {row['elements']:,} elements")
    base = None
    for lane, (low, middle, high) in row["ratio_quartiles"].items():
        if row["base"][lane] != base:
            base = row["base"][lane]
            print(f"  {'as a ratio to ' + base:<36} {'ratio':>6}   {'quartiles':<16}{'ms':>8}")
        goal = goal_of(workload, lane)
        verdict = "" if goal is None else f"   goal {goal:.2f}: {'reached' if middle <= goal else 'MISSED'}"
        print(f"    {lane:<34} {middle:6.3f}   ({low:.3f} to {high:.3f}) {row['median_ms'][lane]:8.2f}{verdict}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument(
        "--rounds", type=int, default=10, help="with 124M parameters; with small ones four times as many"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="only the small tensors: seconds, and 100 MB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    result = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": arguments.threads,
        "clock": clock.__name__,
        "rounds": arguments.rounds,
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "workloads": {},
    }
    workloads = {"1000 x 64x64": (small, 4 * arguments.rounds), "GPT-2, 124M": (gpt2, arguments.rounds)}
    for name, (make, rounds) in list(workloads.items())[: 1 if arguments.small else None]:
        row = measured(make(), rounds, clock)
        result["workloads"][name] = {**row, "goals": {lane: goal_of(name, lane) for lane in row["base"]}}
        show(name, row)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
