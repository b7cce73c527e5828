"""Every policy with its default settings against the constant threshold that a grid search would have found.

    python benchmarks/regret.py -o regret.json

Healthy trainings: those of `default_policy.py`, one of them once more with the loss summed over the batch instead of
averaged and a learning rate as much smaller, which is the same training, and the character model of `spikes.py`. Bad
steps: gradients multiplied in a few steps ("x10": the drills of `default_policy.py`), and the character model at three
times its learning rate with bad batches. Set up wrong: a network drawn so that it explodes, as in `thresholds.py`; a
plain recurrent network whose recurrent weights are half as large again as orthogonal ones; two learning rates ten times
too high. Guards apply the policies. Beside them, candidates for the default: ByZScore with another floor, with a
threshold of 1 on top, and, with SGD, with a step bounded by the loss: `ByPolyakStep` with c = 1 ("and Polyak 1": that
is the guard's default) and with 0.5.

Reached, on data held back, means of the models after the last five times ten steps: accuracy, R2, or for the character
model 1 - loss / loss of guessing by how frequent letters are. All are 1 at best and 0 for a guess; less counts as 0.

Regret of a policy in a training: (best - reached) / best, means over seeds, in percent: 0 is as good as the constant
global norm that was the best of the grid there, infinity included, in hindsight and on the same seeds; 100 is as good
as a guess; a policy that beats the grid has a negative one. Choosing
the best of many noisy numbers flatters the choice, so a small regret is nothing. The number after +- is the standard
error over the seeds.

Where no norm was above a threshold, the training with it is the one without, and is not repeated. `--quick` is one seed
and few steps of few trainings, to see that it runs. One thread; about seventeen minutes.
"""

import argparse
import json
import logging
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
    ByPolyakStep,
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
    "ByPolyakStep": ByPolyakStep(),
    "ByMovingAverage": ByMovingAverage(),
    "BySigmaWindow": BySigmaWindow(),
    "Chain": Chain(BySigmaWindow(), ByGlobalNorm(1.0)),  # the recipe of OLMo: a step is skipped, the rest clipped
    "NormalizedGradient": NormalizedGradient(),
    "ZClip": ZClip(),
}
KINDS = ("healthy", "bad steps", "set up wrong")
SUMMED = "loss summed"
COPIES = {"SkipNonFinite": "norm inf", "ByGlobalNorm": "norm 1"}  # what is in the grid already
WITHOUT_SGD = {"and Polyak 0.5": "ByZScore", "and Polyak 1": "ByZScore", "ByPolyakStep": "norm inf"}  # the same there


def with_polyak(c: float, optimizer: torch.optim.Optimizer) -> AbstractPolicy:
    """Bound the step by the loss too, where the step is the learning rate times the gradient."""
    return Chain(ByZScore(), ByPolyakStep(c=c)) if isinstance(optimizer, torch.optim.SGD) else ByZScore()


Clip = AbstractPolicy | Callable[[torch.optim.Optimizer], AbstractPolicy]
CANDIDATES: dict[str, Clip] = {
    "floor 0.1": ByZScore(std_floor=0.1),
    "and norm 1": Chain(ByZScore(), ByGlobalNorm(1.0)),
    "and Polyak 0.5": partial(with_polyak, 0.5),
    "and Polyak 1": partial(with_polyak, 1.0),
}
assert {type(policy) for policy in POLICIES.values()} == set(ALL)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training: how to run it with a policy and a seed, its seeds, and what is wrong with it."""

    name: str
    run: Callable[[Clip, int], "Run"]
    seeds: tuple[int, ...]
    kind: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was reached, the largest finite norm on the way, and the shares of steps clipped and skipped."""

    reached: float
    largest: float
    clipped: float
    skipped: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training with one policy and one seed."""

    training: str
    kind: str
    policy: str
    seed: int
    reached: float
    clipped: float
    skipped: float


Step = Callable[[int], Tensor]


def followed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Clip,
    *,
    steps: int,
    loss_at: Step,
    reached: Callable[[], float],
) -> Run:
    """Train under a guard."""
    found: list[float] = []
    largest = 0.0
    policy = clip if isinstance(clip, AbstractPolicy) else clip(optimizer)
    with Guard(
        model, optimizer, clip=policy, max_consecutive_skips=steps, sample_every_steps=None, tell=False
    ) as guard:
        for step in range(steps):
            optimizer.zero_grad()
            guard.loss(loss_at(step)).backward()
            optimizer.step()
            norm = guard.last_norm.item()
            largest = max(largest, norm) if math.isfinite(norm) else largest
            if step >= steps - 50 and step % 10 == 9:
                found.append(max(0.0, reached()))
        shares = {"clipped": guard.clips / steps, "skipped": guard.skips / steps}
    return Run(reached=statistics.fmean(found), largest=largest, **shares)


def run_job(job: Job, drill: str, clip: Clip, seed: int) -> Run:
    torch.manual_seed(seed)
    model, (inputs, targets) = job.model(), job.data
    known, generator = len(inputs) * 3 // 4, torch.Generator().manual_seed(seed)
    factor = job.batch if drill == SUMMED else float(drill.removeprefix("x")) if drill else 1.0
    bad = set(range(job.steps)) if drill == SUMMED else bad_steps(drill, job.steps, seed) if drill else set()

    def loss_at(step: int) -> Tensor:
        part = torch.randint(known, (job.batch,), generator=generator)
        return loss_of(model(inputs[part]), targets[part]) * (factor if step in bad else 1.0)

    reached = partial(reached_by, model, inputs[known:], targets[known:])
    return followed(model, job.optimizer(model.parameters()), clip, steps=job.steps, loss_at=loss_at, reached=reached)


def run_text(lr: float, steps: int, bad: bool, clip: Clip, seed: int) -> Run:
    torch.manual_seed(seed)
    model, generator = Speller(corpus()[2]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)

    def loss_at(step: int) -> Tensor:
        inputs, targets, factor = batch_of(step, generator, bad=bad)
        return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) * factor

    def reached() -> float:
        return 1 - held_back(model) / guessing()

    return followed(model, optimizer, clip, steps=steps, loss_at=loss_at, reached=reached)


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
        never = free is not None and free.skipped == 0 and free.largest < threshold / 1.001
        made[f"norm {threshold:g}"] = free if never else training.run(ByGlobalNorm(threshold), seed)
    copies = COPIES if "SGD" in training.name else COPIES | WITHOUT_SGD
    for name, clip in (POLICIES | CANDIDATES).items():
        made[name] = made[copies[name]] if name in copies else training.run(clip, seed)
    for name, run in made.items():
        number = asdict(run)
        del number["largest"]
        yield Row(training=training.name, kind=training.kind, policy=name, seed=seed, **number)


def reached_in(rows: Sequence[Row], training: str, policy: str) -> float:
    return statistics.fmean(row.reached for row in rows if (row.training, row.policy) == (training, policy))


def best_in(rows: Sequence[Row], training: str) -> str:
    """Find the best constant threshold of a training; the largest where several are."""
    return max((f"norm {threshold:g}" for threshold in GRID), key=partial(reached_in, rows, training))


def regrets(rows: Sequence[Row], training: str, policy: str) -> list[float]:
    """Compute the regret of each seed, in percent of the best mean."""
    best = best_in(rows, training)
    unit = reached_in(rows, training, best)
    by = {(row.policy, row.seed): row.reached for row in rows if row.training == training}
    return [100 * (by[best, seed] - by[policy, seed]) / unit for name, seed in by if name == policy]


@dataclass(frozen=True, kw_only=True)
class Total:
    """The regret of a policy over all trainings, and the share of steps clipped in healthy ones, in percent."""

    policy: str
    mean: float
    error: float
    kinds: dict[str, float]
    clipped: float
    worst: float
    worst_in: str
    above_one: int


def total_of(rows: Sequence[Row], policy: str) -> Total:
    kinds = {row.training: row.kind for row in rows}
    each = {name: regrets(rows, name, policy) for name in kinds}
    means = {name: statistics.fmean(found) for name, found in each.items()}
    squares = [statistics.variance(found) / len(found) for found in each.values() if len(found) > 1]
    worst = max(means, key=lambda name: means[name])
    return Total(
        policy=policy,
        mean=statistics.fmean(means.values()),
        error=math.sqrt(sum(squares)) / len(means),
        kinds={kind: statistics.fmean(means[name] for name in means if kinds[name] == kind) for kind in KINDS},
        clipped=100 * statistics.fmean(row.clipped for row in rows if (row.policy, row.kind) == (policy, KINDS[0])),
        worst=means[worst],
        worst_in=worst,
        above_one=sum(regret > 1 for regret in means.values()),
    )


def show(rows: Sequence[Row]) -> list[Total]:
    names = list(dict.fromkeys(row.training for row in rows))
    shown = [*POLICIES, *CANDIDATES]
    print(f"\n{'regret in %':20}" + "".join(f"{number:7}" for number in range(1, len(names) + 1)))
    for policy in shown:
        found = [statistics.fmean(regrets(rows, name, policy)) for name in names]
        print(f"{policy:20}" + "".join(f"{regret:7.1f}" for regret in found))
    constants = [f"norm {threshold:g}" for threshold in GRID]
    every = sorted((total_of(rows, policy) for policy in [*constants, *shown]), key=lambda total: total.mean)
    heads = ("mean", "+-", *KINDS, "clipped %", "worst", "above 1 %")
    print(f"\n{'regret in %':20}" + "".join(f"{head:>13}" for head in heads) + "  worst in")
    for total in every:
        numbers = (total.mean, total.error, *total.kinds.values(), total.clipped, total.worst)
        cells = "".join(f"{number:13.2f}" for number in numbers)
        print(f"{total.policy:20}{cells}{f'{total.above_one} of {len(names)}':>13}  {total.worst_in}")
    return every


def trained(*, quick: bool) -> list[Row]:
    print(f"{'':4}{'training':24}{'seeds':>6}{'best':>11}{'reached':>9}{'none':>9}{'ByZScore':>10}")
    rows: list[Row] = []
    for number, training in enumerate(trainings(quick=quick), 1):
        for seed in training.seeds:
            rows += rows_of(training, seed)
        best, of = best_in(rows, training.name), partial(reached_in, rows, training.name)
        head = f"{number:>2}  {training.name:24}{len(training.seeds):>6}{best:>11}"
        print(f"{head}{of(best):9.3f}{of('norm inf'):9.3f}{of('ByZScore'):10.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("evengrad").setLevel(logging.ERROR)  # thousands of skipped steps are expected
    rows = trained(quick=given.quick)
    totals = show(rows)
    if given.output is not None:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        kept = {"facts": {**facts, "threads": torch.get_num_threads()}, "totals": [asdict(total) for total in totals]}
        given.output.write_text(json.dumps({**kept, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
