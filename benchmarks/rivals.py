"""evengrad's `repair` beside AUTOTRAINER and random search, on nine programs of a published comparison.

    python benchmarks/rivals.py -o rivals.json --page docs/rivals.md
    python benchmarks/rivals.py --only D1,D4 --seeds 0 --processes 1

Each repair has the same budget: as many rows of training data as evengrad's repair has seen on that program and seed,
its confirmation included, and never less than ten trainings. What each hands out is trained anew on three seeds that
nobody has used, and the metric of the held back rows is what counts.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from rivals._autotrainer import autotrainer
from rivals._page import line_of, page, summary
from rivals._programs import CONTESTS, Contest
from rivals._random import Space, random_search
from rivals._results import Method, Result
from rivals._training import metric_from

import evengrad
from evengrad import Task
from evengrad.trial import metric_of

FRESH = 1000  # what is added to a seed for the trainings that count
FINAL = 3
LEAST_TRAININGS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One program, one seed.

    Args:
        contest: The program.
        seed: Of every method's search.
        rows: That each rival may see.
    """

    contest: Contest
    seed: int
    rows: int = field(default=0)

    @property
    def fresh(self) -> tuple[int, ...]:
        """Seeds that no search has used."""
        return tuple(FRESH + self.seed + number for number in range(FINAL))


def run(job: tuple[str, int]) -> Result:
    """Let all of them repair one program."""
    torch.set_num_threads(1)
    key, number = job
    contest = next(one for one in CONTESTS if one.key == key)
    ours, rows, findings = _ours(Setting(contest=contest, seed=100 * number))
    setting = Setting(contest=contest, seed=100 * number, rows=max(rows, LEAST_TRAININGS * contest.examples))
    return Result(
        key=key,
        seed=number,
        faulty=_trained(contest.faulty, setting.fresh),
        fixed=_trained(contest.fixed, setting.fresh),
        budget=setting.rows / contest.examples,
        findings=findings,
        methods=(ours, _autotrainer(setting), _random(setting, "wide"), _random(setting, "narrow")),
    )


def _ours(setting: Setting) -> tuple[Method, int, tuple[str, ...]]:
    contest = setting.contest
    started = time.perf_counter()
    found = evengrad.repair(contest.faulty, seed=setting.seed, engine="here")
    seconds = time.perf_counter() - started
    trainings = sum(len(trial.losses) for trial in found.trials) / contest.faulty.steps
    method = Method(
        name="evengrad",
        ended=found.verdict.outcome,
        label=found.verdict.label if found.treatment is not None else "",
        metrics=_trained(found.task, setting.fresh),
        trainings=trainings,
        trials=len(found.trials),
        seconds=seconds,
    )
    return (
        method,
        round(trainings * contest.examples),
        tuple(f"{finding.code} {finding.family}" for finding in found.findings),
    )


def _autotrainer(setting: Setting) -> Method:
    contest = setting.contest
    started = time.perf_counter()
    found = autotrainer(contest, seed=setting.seed, rows=setting.rows)
    seconds = time.perf_counter() - started
    if found.choice is None:
        metrics = _trained(contest.faulty, setting.fresh)
    else:
        metrics = tuple(metric_from(contest, found.choice, seed) for seed in setting.fresh)
    worked_on = f" ({', '.join(found.issues)})" if found.issues else ""
    return Method(
        name="AUTOTRAINER",
        ended=found.ended + worked_on,
        label="" if found.choice is None else found.choice.label,
        metrics=metrics,
        own=found.score,
        trainings=found.rows / contest.examples,
        trials=found.trainings,
        seconds=seconds,
    )


def _random(setting: Setting, space: Space) -> Method:
    contest = setting.contest
    started = time.perf_counter()
    found = random_search(contest, space, seed=setting.seed, rows=setting.rows)
    return Method(
        name=f"random, {space}",
        ended=f"best {found.score:.2f}",
        label=found.choice.label,
        metrics=tuple(metric_from(contest, found.choice, seed) for seed in setting.fresh),
        trainings=found.rows / contest.examples,
        trials=found.trainings,
        seconds=time.perf_counter() - started,
    )


def _trained(task: Task, seeds: Sequence[int]) -> tuple[float | None, ...]:
    return tuple(metric_of(task, seed) for seed in seeds)


def main() -> None:
    """Compare on all programs that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--only", default="", help="keys of programs, with commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    only = frozenset(filter(None, options.only.split(",")))
    if unknown := only - {contest.key for contest in CONTESTS}:
        parser.error(f"--only: no program is called {', '.join(sorted(unknown))}")
    longest_first = sorted(CONTESTS, key=lambda contest: -contest.faulty.steps)
    keys = [contest.key for contest in longest_first if not only or contest.key in only]
    jobs = [(key, int(seed)) for seed in options.seeds.split(",") for key in keys]
    results: list[Result] = []
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for result in pool.imap_unordered(run, jobs):
            results.append(result)
            print(line_of(result), flush=True)
    results.sort(key=lambda result: (result.key, result.seed))
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processes": options.processes,
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    print(summary(results))
    if options.output is not None:
        options.output.write_text(json.dumps({"facts": facts, "results": [asdict(one) for one in results]}, indent=1))
    if options.page is not None:
        options.page.write_text(page(results, facts))


if __name__ == "__main__":
    main()
