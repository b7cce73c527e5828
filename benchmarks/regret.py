"""Every policy with its default settings against the constant threshold that a grid search would have found.

    python benchmarks/regret.py -o regret.json

Healthy trainings: those of `default_policy.py`, one of them once more with the loss summed over the batch instead of
averaged and a learning rate as much smaller, which is the same training, and the character model of `spikes.py`. Bad
steps: gradients multiplied in a few steps ("x10": the drills of `default_policy.py`), and the character model at three
times its learning rate with bad batches. Set up wrong: a network drawn so that it explodes, as in `thresholds.py`; a
plain recurrent network whose recurrent weights are half as large again as orthogonal ones; two learning rates ten times
too high. Guards apply the policies; candidates for the default are shown beside them.

Reached, on data held back, means of the models after the last five times ten steps: accuracy, R2, or for the character
model 1 - loss / loss of guessing by how frequent letters are. All are 1 at best and 0 for a guess; less counts as 0.

Regret of a policy in a training: (best - reached) / best, means over seeds, in percent: 0 is as good as the constant
global norm that was the best of the grid there, infinity included, in hindsight and on the same seeds; 100 is as good
as a guess; a policy that beats the grid has a negative one. Choosing the best of many noisy numbers flatters the
choice; "fair" is the regret against the threshold chosen by the other seeds. The number after +- is the standard error
over the seeds.

Where no norm was above a threshold, the training with it is the one without, and is not repeated. `--quick` is one seed
and few steps of few trainings, to see that it runs. One thread; about fifteen minutes.
"""

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from default_policy import Job, Reader, bad_steps, convolutional, copying, digits, jobs, loss_of, reached_by
from default_policy import deep as network
from spikes import Speller, batch_of, corpus, held_back
from thresholds import deep as drawn
from thresholds import normal
from torch import Tensor, nn
from torch.nn import functional

from evengrad.clip import (
    ALL,
    AbstractPolicy,
    ByBlockRms,
    ByGlobalNorm,
    ByMovingAverage,
    ByPercentile,
    BySigmaWindow,
    BySmoothNorm,
    ByTensorNorm,
    ByWeightNorm,
    ByZScore,
    Chain,
    NormalizedGradient,
    SkipNonFinite,
    ZClip,
)
from evengrad.guard import Guard

GRID = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
POLICIES: dict[str, AbstractPolicy] = {
    "ByZScore": ByZScore(),
    "SkipNonFinite": SkipNonFinite(),
    "ByGlobalNorm": ByGlobalNorm(1.0),
    "BySmoothNorm": BySmoothNorm(1.0),
    "ByTensorNorm": ByTensorNorm(1.0),
    "ByBlockRms": ByBlockRms(),
    "ByWeightNorm": ByWeightNorm(),
    "ByPercentile": ByPercentile(),
    "ByMovingAverage": ByMovingAverage(),
    "BySigmaWindow": BySigmaWindow(),
    "Chain": Chain(BySigmaWindow(), ByGlobalNorm(1.0)),  # the recipe of OLMo: a step is skipped, the rest clipped
    "NormalizedGradient": NormalizedGradient(),
    "ZClip": ZClip(),
}
CANDIDATES: dict[str, AbstractPolicy] = {
    "floor 0.1": ByZScore(std_floor=0.1),
    "floor 0.5": ByZScore(std_floor=0.5),
    "and norm 1": Chain(ByZScore(), ByGlobalNorm(1.0)),
}
KINDS = ("healthy", "bad steps", "set up wrong")
SUMMED = "loss summed"
COPIES = {"SkipNonFinite": "norm inf", "ByGlobalNorm": "norm 1"}  # what is in the grid already
assert {type(policy) for policy in POLICIES.values()} == set(ALL)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training: how to run it with a policy and a seed, its seeds, and what is wrong with it."""

    name: str
    run: Callable[[AbstractPolicy, int], "Run"]
    seeds: tuple[int, ...]
    kind: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was reached, the largest finite norm on the way, and how many steps were clipped or skipped."""

    reached: float
    largest: float
    clips: int
    skips: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training with one policy and one seed."""

    training: str
    kind: str
    policy: str
    seed: int
    reached: float
    clips: int
    skips: int


Step = Callable[[int], Tensor]


def followed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    policy: AbstractPolicy,
    *,
    steps: int,
    loss_at: Step,
    reached: Callable[[], float],
) -> Run:
    """Train under a guard."""
    found: list[float] = []
    largest = 0.0
    with Guard(model, optimizer, clip=policy, max_consecutive_skips=steps) as guard:
        for step in range(steps):
            optimizer.zero_grad()
            guard.loss(loss_at(step)).backward()
            optimizer.step()
            norm = guard.last_norm.item()
            largest = max(largest, norm) if math.isfinite(norm) else largest
            if step >= steps - 50 and step % 10 == 9:
                found.append(max(0.0, reached()))
        return Run(reached=statistics.fmean(found), largest=largest, clips=guard.clips, skips=guard.skips)


def run_job(job: Job, drill: str, policy: AbstractPolicy, seed: int) -> Run:
    torch.manual_seed(seed)
    model, (inputs, targets) = job.model(), job.data
    known, generator = len(inputs) * 3 // 4, torch.Generator().manual_seed(seed)
    factor = job.batch if drill == SUMMED else float(drill.removeprefix("x")) if drill else 1.0
    bad = set(range(job.steps)) if drill == SUMMED else bad_steps(drill, job.steps, seed) if drill else set()

    def loss_at(step: int) -> Tensor:
        part = torch.randint(known, (job.batch,), generator=generator)
        return loss_of(model(inputs[part]), targets[part]) * (factor if step in bad else 1.0)

    reached = partial(reached_by, model, inputs[known:], targets[known:])
    return followed(model, job.optimizer(model.parameters()), policy, steps=job.steps, loss_at=loss_at, reached=reached)


def run_text(lr: float, steps: int, bad: bool, policy: AbstractPolicy, seed: int) -> Run:
    torch.manual_seed(seed)
    model, generator = Speller(corpus()[2]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)

    def loss_at(step: int) -> Tensor:
        inputs, targets, factor = batch_of(step, generator, bad=bad)
        return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) * factor

    def reached() -> float:
        return 1 - held_back(model) / guessing()

    return followed(model, optimizer, policy, steps=steps, loss_at=loss_at, reached=reached)


@cache
def guessing() -> float:
    """Compute the loss of guessing each held-back letter by how frequent it is in the known text."""
    known, apart, letters = corpus()
    counts = torch.bincount(known, minlength=letters) + 1.0
    return -(counts / counts.sum()).log()[apart].mean().item()


def stretched(factor: float) -> Reader:
    """Make a plain recurrent network whose recurrent weights are orthogonal times a factor."""
    reader = Reader(nn.RNN, 9, 8)
    nn.init.orthogonal_(reader.rnn.weight_hh_l0, factor)
    return reader


def wrong_jobs() -> tuple[Job, ...]:
    momentum = partial(torch.optim.SGD, momentum=0.9)
    exploding, through_time = partial(drawn, nn.ReLU, 8, normal(0.3)), partial(stretched, 1.5)
    quick, pictures = partial(torch.optim.Adam, lr=1e-2), digits()
    return (
        Job(name="exploding ReLU 8, SGD", model=exploding, optimizer=partial(momentum, lr=0.1), data=pictures),
        Job(name="RNN copy, SGD", model=through_time, optimizer=partial(momentum, lr=0.1), data=copying()),
        Job(name="conv, SGD, lr 0.5", model=convolutional, optimizer=partial(momentum, lr=0.5), data=pictures),
        Job(name="ReLU 6, Adam, lr 0.01", model=partial(network, nn.ReLU, 6), optimizer=quick, data=pictures),
    )


DRILLS = (("ReLU 6, SGD", "x10"), ("tanh 6, SGD", "x100"), ("conv, SGD", "x10000"))
COSTLY = ("conv", "LSTM", "GRU", "transformer", "RNN", "text")


def trainings(*, quick: bool) -> Iterator[Training]:
    by_name = {job.name: job for job in jobs()}
    small = replace(by_name["tanh 6, SGD"], optimizer=partial(torch.optim.SGD, lr=0.05 / 64, momentum=0.9))
    made = [(job, "", "healthy") for job in jobs()] + [(small, SUMMED, "healthy")]
    made += [(by_name[name], drill, "bad steps") for name, drill in DRILLS]
    made += [(job, "", "set up wrong") for job in wrong_jobs()]
    if quick:
        made = [made[3], made[13], made[17]]
    for job, drill, kind in made:
        steps = 120 if quick else steps_of(job.name)
        seeds = (0,) if quick else (0, 1) if job.name.startswith(COSTLY) else (0, 1, 2)
        name = f"{job.name}, {drill}" if drill else job.name
        yield Training(name=name, run=partial(run_job, replace(job, steps=steps), drill), seeds=seeds, kind=kind)
    if not quick:
        yield Training(name="text, AdamW", run=partial(run_text, 4e-3, 300, False), seeds=(0, 1), kind="healthy")
        yield Training(name="text, lr x3", run=partial(run_text, 1.2e-2, 300, True), seeds=(0, 1), kind="bad steps")


def steps_of(name: str) -> int:
    """Choose a length: past the plateaus of deep networks, and none in which the small data is learnt by heart."""
    return 100 if name.startswith("diabetes") else 400 if name.startswith(COSTLY) else 500


def rows_of(training: Training, seed: int) -> Iterator[Row]:
    made: dict[str, Run] = {}
    for threshold in GRID:
        free = made.get("norm inf")
        never = free is not None and free.skips == 0 and free.largest < threshold / 1.001
        made[f"norm {threshold:g}"] = free if never else training.run(ByGlobalNorm(threshold), seed)
    for name, policy in (POLICIES | CANDIDATES).items():
        made[name] = made[COPIES[name]] if name in COPIES else training.run(policy, seed)
    for name, run in made.items():
        counts = {"clips": run.clips, "skips": run.skips}
        yield Row(training=training.name, kind=training.kind, policy=name, seed=seed, reached=run.reached, **counts)


def reached_in(rows: Sequence[Row], training: str, policy: str, *, but: int | None = None) -> float:
    found = [row.reached for row in rows if (row.training, row.policy) == (training, policy) and row.seed != but]
    return statistics.fmean(found)


def best_in(rows: Sequence[Row], training: str, *, but: int | None = None) -> str:
    """Find the best constant threshold of a training; the largest where several are."""
    return max(
        (f"norm {threshold:g}" for threshold in GRID), key=lambda name: reached_in(rows, training, name, but=but)
    )


def regrets(rows: Sequence[Row], training: str, policy: str, *, fair: bool) -> list[float]:
    """Compute the regret of each seed, in percent of the best mean; fair: its rival is chosen by the other seeds."""
    unit = reached_in(rows, training, best_in(rows, training))
    by = {(row.policy, row.seed): row.reached for row in rows if row.training == training}
    seeds = sorted({seed for _, seed in by})
    fair = fair and len(seeds) > 1
    rivals = {seed: best_in(rows, training, but=seed if fair else None) for seed in seeds}
    return [100 * (by[rivals[seed], seed] - by[policy, seed]) / unit for seed in seeds]


@dataclass(frozen=True, kw_only=True)
class Total:
    """The regret of a policy over all trainings, in percent."""

    policy: str
    mean: float
    error: float
    kinds: dict[str, float]
    fair: float
    worst: float
    worst_in: str
    above_one: int


def total_of(rows: Sequence[Row], policy: str) -> Total:
    kinds = {row.training: row.kind for row in rows}
    each = {name: regrets(rows, name, policy, fair=False) for name in kinds}
    means = {name: statistics.fmean(found) for name, found in each.items()}
    fair = [statistics.fmean(regrets(rows, name, policy, fair=True)) for name in kinds]
    squares = [statistics.variance(found) / len(found) for found in each.values() if len(found) > 1]
    worst = max(means, key=lambda name: means[name])
    return Total(
        policy=policy,
        mean=statistics.fmean(means.values()),
        error=math.sqrt(sum(squares)) / len(means),
        kinds={kind: statistics.fmean(means[name] for name in means if kinds[name] == kind) for kind in KINDS},
        fair=statistics.fmean(fair),
        worst=means[worst],
        worst_in=worst,
        above_one=sum(regret > 1 for regret in means.values()),
    )


def show(rows: Sequence[Row]) -> list[Total]:
    names = list(dict.fromkeys(row.training for row in rows))
    shown = [*POLICIES, *CANDIDATES]
    print(f"\n{'regret in %':24}" + "".join(f"{policy:>19}" for policy in shown))
    for name in names:
        found = [statistics.fmean(regrets(rows, name, policy, fair=False)) for policy in shown]
        print(f"{name:24}" + "".join(f"{regret:19.1f}" for regret in found))
    constants = [f"norm {threshold:g}" for threshold in GRID]
    every = sorted((total_of(rows, policy) for policy in [*constants, *shown]), key=lambda total: total.mean)
    heads = ("mean", "+-", *KINDS, "fair", "worst", "above 1 %")
    print(f"\n{'regret in %':20}" + "".join(f"{head:>13}" for head in heads) + "  worst in")
    for total in every:
        numbers = (total.mean, total.error, *total.kinds.values(), total.fair, total.worst)
        cells = "".join(f"{number:13.2f}" for number in numbers)
        print(f"{total.policy:20}{cells}{f'{total.above_one} of {len(names)}':>13}  {total.worst_in}")
    return every


def trained(*, quick: bool) -> list[Row]:
    print(f"{'training':24}{'seeds':>6}{'best':>11}{'reached':>9}{'none':>9}{'ByZScore':>10}")
    rows: list[Row] = []
    for training in trainings(quick=quick):
        for seed in training.seeds:
            rows += rows_of(training, seed)
        best, of = best_in(rows, training.name), partial(reached_in, rows, training.name)
        head = f"{training.name:24}{len(training.seeds):>6}{best:>11}"
        print(f"{head}{of(best):9.3f}{of('norm inf'):9.3f}{of('ByZScore'):10.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = trained(quick=given.quick)
    totals = show(rows)
    if given.output is not None:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        kept = {"facts": {**facts, "threads": torch.get_num_threads()}, "totals": [asdict(total) for total in totals]}
        given.output.write_text(json.dumps({**kept, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
