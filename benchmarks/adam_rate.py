"""The learning rate that `SwapOptimizer` gives to Adam in a short training: how far a weight can move in all steps.

    python benchmarks/adam_rate.py -o adam_rate.json

Faulty programs of the clinic whose cure can have AdamW in it, with the rest of their cure where they need one, are
trained with AdamW at six rates and three seeds. Printed are the mean metrics, and for each rule of choosing the rate
from the number of steps its regret: the share of the best metric that it loses, in the mean over the programs and at
worst. A rule `2 / steps` gives each weight room to move by 2; rates stay between torch's default of 0.001 and the cap.
Between the rates that were trained the metric is interpolated. One thread for each training; about eight minutes with
two processes.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from math import log
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from clinic import PROGRAMS

from evengrad import Task
from evengrad.treat import (
    AbstractTreatment,
    AddNormalization,
    AddResidual,
    NormalizeInput,
    NormalizeTarget,
    Reinitialize,
    RemoveOutputActivation,
    SwapActivation,
    SwapOptimizer,
    UseGatedCell,
)
from evengrad.trial import metric_of

RATES = (1e-3, 1.8e-3, 3e-3, 5.6e-3, 1e-2, 3e-2)
SEEDS = (5, 6, 7)
DISTANCES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
CAPS = (3e-3, 1e-2, 3e-2)
RESIDUAL, GATED, FRESH = AddResidual(norm="auto"), UseGatedCell(), Reinitialize()
OPEN = RemoveOutputActivation(to="identity", when="always")
CASES: dict[str, tuple[int, tuple[AbstractTreatment, ...]]] = {
    "1, norms": (1, (AddNormalization(),)),
    "5, residual": (5, (RESIDUAL,)),
    "8": (8, ()),
    "10, tanh": (10, (SwapActivation(to="tanh"),)),
    "11, residual": (11, (RESIDUAL,)),
    "12, residual": (12, (RESIDUAL,)),
    "13": (13, ()),
    "14": (14, ()),
    "15, weights": (15, (FRESH,)),
    "16": (16, ()),
    "18, output and input": (18, (OPEN, NormalizeInput())),
    "20, output": (20, (OPEN,)),
    "22": (22, ()),
    "27, input": (27, (NormalizeInput(),)),
    "28, input": (28, (NormalizeInput(),)),
    "29, target": (29, (NormalizeTarget(),)),
    "30, weights": (30, (FRESH,)),
    "31, weights": (31, (FRESH,)),
    "32, weights": (32, (FRESH,)),
    "33, residual": (33, (RESIDUAL,)),
    "34, residual": (34, (RESIDUAL,)),
    "36, gates": (36, (GATED,)),
    "37, gates": (37, (GATED,)),
    "37, gates and weights": (37, (GATED, FRESH)),
    "38, gates": (38, (GATED,)),
    "39, gates": (39, (GATED,)),
    "40, gates": (40, (GATED,)),
    "40, gates and weights": (40, (GATED, FRESH)),
}
Metrics = dict[str, dict[float, float]]
"""The mean metric of each case at each rate; 0 where it is below."""


def faulty(number: int) -> Task:
    return next(program.faulty for program in PROGRAMS if program.number == number)


def metric(case: str, rate: float, seed: int) -> float:
    torch.set_num_threads(1)
    number, treatments = CASES[case]
    task = faulty(number)
    for treatment in (*treatments, SwapOptimizer(to="adamw", lr=rate)):
        task = treatment.treat_task(task, seed=seed).subject
    return max(0.0, metric_of(task, seed) or 0.0)


def measured(processes: int) -> Metrics:
    jobs = list(product(CASES, RATES, SEEDS))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        values = dict(zip(jobs, pool.map(metric, *zip(*jobs, strict=True)), strict=True))
    return {case: {rate: mean(values[case, rate, seed] for seed in SEEDS) for rate in RATES} for case in CASES}


def at(metrics: dict[float, float], rate: float) -> float:
    """Interpolate over the logarithm of the rate."""
    upper = next(place for place, known in enumerate(RATES) if known >= rate * 0.999)
    if upper == 0:
        return metrics[RATES[0]]
    low, high = RATES[upper - 1], RATES[upper]
    part = log(rate / low) / log(high / low)
    return (1 - part) * metrics[low] + part * metrics[high]


def regrets(metrics: Metrics, rule: Callable[[int], float]) -> list[float]:
    found = []
    for case, of in metrics.items():
        best = max(of.values())
        found.append((best - at(of, rule(faulty(CASES[case][0]).steps))) / best)
    return found


def rule_of(distance: float, cap: float) -> Callable[[int], float]:
    return lambda steps: min(cap, max(RATES[0], distance / steps))


def table(metrics: Metrics) -> str:
    head = f"{'program':24} {'steps':>5} " + " ".join(f"{rate:>7g}" for rate in RATES)
    rows = [
        f"{case:24} {faulty(CASES[case][0]).steps:5d} " + " ".join(f"{of[rate]:7.3f}" for rate in RATES)
        for case, of in metrics.items()
    ]
    return "\n".join((head, *rows))


def line(name: str, found: Sequence[float]) -> str:
    return f"{name:28} mean regret {mean(found):6.1%}, at worst {max(found):6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    metrics = measured(options.processes)
    print(table(metrics))
    for rate in RATES:
        print(line(f"{rate:g}", regrets(metrics, lambda _steps, rate=rate: rate)))
    for distance, cap in product(DISTANCES, CAPS):
        print(line(f"{distance:g} / steps, at most {cap:g}", regrets(metrics, rule_of(distance, cap))))
    if options.output is not None:
        options.output.write_text(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
