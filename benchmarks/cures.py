"""What `repair` makes of the clinic's programs: the metric that it reaches, against that of the reference fix.

    python benchmarks/cures.py -o cures.json --page docs/cures.md
    python benchmarks/cures.py --only 1,4,37 --seeds 0 --show
    python benchmarks/cures.py --read cures.json --page docs/cures.md

For each faulty program and each seed, `repair` searches from that seed and confirms on three others; the reference fix
is trained on the same three. A program is cured here when the mean of the treated metric reaches 95 % of the mean of
the fix (for a metric below zero: is no worse). Beside it stand the optimizer steps of choosing, in trainings of the
faulty program, and how many trials were of full length. The healthy programs are repaired too: whatever comes out must
be no worse than what went in. A verdict "cured" is checked once more on three seeds that the search never saw.
Each repair runs in this process on one torch thread; several run side by side.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from clinic import EXTRA, HEALTHY, PROGRAMS, Program
from torch import Tensor

import evengrad
from evengrad import Task
from evengrad.trial import metric_of

ENOUGH = 0.95
# Programs of the forty whose fault shows in no gradient: they are there to see whether it is said what is wrong.
NOT_OF_THE_GRADIENT = frozenset({9, 14, 21, 22, 23, 24, 25, 26})
WITHOUT_FIX = frozenset({"healthy", "chance"})
FRESH = 1000  # what is added to a seed for the trainings that nothing was chosen or confirmed by


@dataclass(frozen=True, kw_only=True, slots=True)
class Cured:
    """One repair.

    Args:
        kind: `gradient`, `other`, `extra`, `healthy` or `chance`.
        number: The program's number, 0 for a healthy one.
        name: What it is.
        seed: Of the search.
        outcome: Of the verdict.
        label: What was confirmed.
        before: Mean untreated metric of the confirming seeds, or of the scout.
        after: Mean treated metric of the confirming seeds; that of the scout where nothing was confirmed.
        fixed: Mean metric of the reference fix on the same seeds.
        again: Mean treated metric on seeds that the search did not see, for the verdict cured.
        again_before: Mean untreated metric there.
        full_trials: Treated trainings of full length.
        choosing: Optimizer steps of treated trainings before the confirmation, in whole trainings.
        seconds: Of the repair.
        said: Verdict and trials as text.
    """

    kind: str
    number: int
    name: str
    seed: int
    outcome: str = "raised"
    label: str = ""
    before: float | None = None
    after: float | None = None
    fixed: float | None = None
    again: float | None = None
    again_before: float | None = None
    full_trials: int = 0
    choosing: float = 0.0
    seconds: float = 0.0
    said: str = field(default="", repr=False)

    @property
    def enough(self) -> bool:
        """Whether the metric reaches that of the fix."""
        if self.after is None or self.fixed is None:
            return False
        return self.after >= ENOUGH * self.fixed if self.fixed > 0 else self.after >= self.fixed

    @property
    def within(self) -> bool:
        """Whether the promised effort sufficed."""
        return self.full_trials <= 5 and self.choosing <= 3.0

    @property
    def holds(self) -> bool:
        """Whether what was cured is better on seeds that the search never saw, too."""
        return self.again is not None and (self.again_before is None or self.again > self.again_before)

    @property
    def worse(self) -> bool:
        """Whether a treatment was handed out that is worse than nothing."""
        return bool(self.label) and self.after is not None and self.before is not None and self.after < self.before


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffled:
    """Make the batches of a task with the targets of a whole pass in another order, the same at every call."""

    train: Callable[[], Iterable[tuple[Tensor, Tensor]]]

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = list(self.train())
        targets = torch.cat([target for _, target in batches])
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
        parts = targets[order].split([len(target) for _, target in batches])
        return iter([(data, part) for (data, _), part in zip(batches, parts, strict=True)])


Job = tuple[str, str, int]


def metric_name(program: Program) -> str:
    """Say by what a program is judged."""
    return str(getattr(program.faulty.validate, "func", program.faulty.validate).__name__)


def jobs_of(kinds: Sequence[str], only: frozenset[str], seeds: Sequence[int]) -> list[Job]:
    """List what is to be repaired."""
    found = [("other" if one.number in NOT_OF_THE_GRADIENT else "gradient", str(one.number)) for one in PROGRAMS]
    found += [("extra", str(one.number)) for one in EXTRA]
    found += [("healthy", one.name) for one in HEALTHY]
    found += [("chance", str(one.number)) for one in PROGRAMS if metric_name(one) != "r2"]
    return [
        (kind, name, seed) for seed in seeds for kind, name in found if kind in kinds and (not only or name in only)
    ]


def run(job: Job) -> Cured:
    """Repair one; what raises is a result without a verdict."""
    torch.set_num_threads(1)
    kind, name, seed = job
    try:
        return _repaired(kind, name, seed)
    except Exception:
        return Cured(
            kind=kind, number=int(name) if name.isdigit() else 0, name=name, seed=seed, said=traceback.format_exc()
        )


def _repaired(kind: str, name: str, seed: int) -> Cured:
    if kind == "healthy":
        number, task, fixed = 0, next(one for one in HEALTHY if one.name == name).task, None
    else:
        program = next(one for one in (*PROGRAMS, *EXTRA) if str(one.number) == name)
        number, name, task, fixed = program.number, program.name, program.faulty, program.fixed
        if kind == "chance":
            task, fixed = replace(task, train=Shuffled(train=task.train)), None
    started = time.perf_counter()
    result = evengrad.repair(task, seed=seed * 100, engine="here")
    seconds = time.perf_counter() - started
    verdict, scout = result.verdict, result.trials[0]
    seeds = verdict.seeds if len(verdict.seeds) > 1 else (seed * 100 + 2, seed * 100 + 3, seed * 100 + 4)
    chosen = [trial for trial in result.trials if trial.stage.startswith("halving")]
    confirmed = [trial for trial in result.trials if trial.stage == "confirmation" and trial.label != "untreated"]
    fresh = [one + FRESH for one in seeds] if verdict.outcome == "cured" else []
    return Cured(
        kind=kind,
        number=number,
        name=name,
        seed=seed,
        outcome=verdict.outcome,
        label=verdict.label if result.treatment is not None else "",
        before=_mean(verdict.metric_before) if result.treatment is not None else scout.metric,
        after=_mean(verdict.metric_after) if result.treatment is not None else scout.metric,
        fixed=None if fixed is None else _trained(fixed, seeds),
        again=_trained(result.task, fresh),
        again_before=_trained(task, fresh),
        full_trials=len(confirmed) + sum(trial.steps == task.steps for trial in chosen),
        choosing=sum(len(trial.losses) for trial in chosen) / task.steps,
        seconds=seconds,
        said=_said(result),
    )


def _trained(task: Task, seeds: Sequence[int]) -> float | None:
    return _mean([metric_of(task, seed) for seed in seeds])


def _mean(metrics: Sequence[float | None]) -> float | None:
    known = [metric for metric in metrics if metric is not None]
    return mean(known) if known and len(known) == len(metrics) else None


def _said(result: evengrad.Repair) -> str:
    lines = [f"{result.verdict.outcome}: {result.verdict.message}"]
    lines += [f"  {finding.code} {finding.symptom}" for finding in result.findings]
    for trial in result.trials:
        metric = "failed" if trial.metric is None else f"{trial.metric:.3f}"
        found = " ".join(trial.findings)
        lines.append(
            f"  {trial.stage:<12} {trial.seed:>4} {trial.steps:>5} {metric:>8} {trial.label} {found} {trial.error[:60]}"
        )
    return "\n".join(lines)


def line_of(one: Cured) -> str:
    """Show a repair in one line."""
    mark = "" if one.kind in WITHOUT_FIX else "enough" if one.enough else "SHORT "
    mark += " WORSE" if one.worse else "" if one.within else " EFFORT"
    numbers = " ".join(
        "-".rjust(7) if value is None else f"{value:7.3f}" for value in (one.before, one.after, one.fixed)
    )
    return (
        f"{one.kind:<8} {one.number or '':>3} {one.name[:36]:<36} {one.seed} {one.outcome:<12} {numbers} {mark:<8} "
        f"{one.full_trials} full {one.choosing:4.2f} {one.seconds:5.1f} s  {one.label}"
    )


def summary(all_of_them: Sequence[Cured]) -> str:
    """Print the figures of the promise."""
    lines = []
    for kind in ("gradient", "other", "extra"):
        programs: dict[int, list[Cured]] = defaultdict(list)
        for one in all_of_them:
            if one.kind == kind:
                programs[one.number].append(one)
        if programs:
            most = [2 * sum(one.enough and one.within for one in same) > len(same) for same in programs.values()]
            every = [one for same in programs.values() for one in same]
            short = sorted({one.number for one in every if not (one.enough and one.within)})
            lines.append(
                f"{kind}: {sum(most)} of {len(most)} programs reach {ENOUGH:.0%} of the fix on most seeds in 5 full "
                f"trials and 3 trainings ({sum(one.enough and one.within for one in every)} of {len(every)} "
                f"repairs); short at least once: {', '.join(map(str, short)) or 'none'}"
            )
    healthy = [one for one in all_of_them if one.kind == "healthy"]
    if healthy:
        verdicts = defaultdict(int)
        for one in healthy:
            verdicts[one.outcome] += 1
        lines.append(
            f"healthy: {sum(one.worse for one in healthy)} of {len(healthy)} made worse; verdicts {dict(verdicts)}"
        )
    chance = [one for one in all_of_them if one.kind == "chance"]
    if chance:
        called = [one.outcome for one in chance]
        lines.append(
            f"targets shuffled: {called.count('cured')} of {len(called)} called cured, "
            f"{called.count('improved')} improved"
        )
    cured = [one for one in all_of_them if one.outcome == "cured" and one.kind != "chance"]
    if cured:
        held = [one for one in cured if one.holds]
        lines.append(f"cured: {len(held)} of {len(cured)} verdicts hold on three seeds that were used for nothing")
    times = [one.seconds for one in all_of_them if one.kind != "chance"]
    if times:
        lines.append(f"time of a repair: median {median(times):.1f} s, at most {max(times):.1f} s")
    return "\n".join(lines)


PROSE = (
    "The programs are those of [the clinic](clinic.md), each with a reference fix that a person wrote. `repair` was",
    "built beside them, so expect less on trainings that nobody here has seen.",
    "",
    "Each repair searches from a seed of its own and confirms on three others. Its metric is the mean over these, and",
    "the reference fix is trained on the same three. *Reached* is a repair whose metric is at least 95 % of the fix's,",
    "with at most five treated trainings of full length and at most three trainings' worth of optimizer steps for",
    "choosing, in the faulty program's number of steps; some fixes train for longer. The untreated trainings and the",
    "controls on shuffled targets that belong to the proof are not counted in either.",
)


def page(found: Sequence[Cured], facts: dict[str, object]) -> str:
    """Write what came out as a page."""
    lines = [
        "# What repair makes of the clinic",
        "",
        f"Written by `python benchmarks/cures.py --page docs/cures.md` on {facts['date']}: torch {facts['torch']},",
        f"one thread for each repair, {facts['processes']} side by side.",
        "",
        *PROSE,
        "",
        "## In short",
        "",
        *(f"- {line}" for line in summary(found).splitlines()),
        "",
        *_tables(found),
    ]
    return "\n".join(lines) + "\n"


TITLES = {
    "gradient": "Faults that show in the gradients",
    "other": "Faults that do not: labels, outputs, too few or too small steps",
    "extra": "Further faults",
    "healthy": "Healthy programs",
    "chance": "Faulty programs with shuffled targets",
}


def _tables(found: Sequence[Cured]) -> list[str]:
    lines: list[str] = []
    for kind, title in TITLES.items():
        same = sorted((one for one in found if one.kind == kind), key=lambda one: (one.number, one.name, one.seed))
        if not same:
            continue
        lines += [f"## {title}", ""]
        lines += ["| # | program | seed | verdict | before | after | fix | reached | full | choosing | s | treatment |"]
        lines += ["| --- " * 12 + "|"]
        for one in same:
            reached = "" if kind in WITHOUT_FIX else "yes" if one.enough and one.within else "no"
            metrics = " | ".join(
                "-" if value is None else f"{value:.3f}" for value in (one.before, one.after, one.fixed)
            )
            lines.append(
                f"| {one.number or ''} | {one.name} | {one.seed} | {one.outcome} | {metrics} | {reached} | "
                f"{one.full_trials} | {one.choosing:.2f} | {one.seconds:.0f} | {one.label} |"
            )
        lines.append("")
    return lines[:-1]


def main() -> None:
    """Repair all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--read", type=Path, help="take the numbers from such a file instead of repairing")
    parser.add_argument("--only", default="", help="numbers or names, with commas")
    parser.add_argument("--kinds", default="gradient,other,extra,healthy,chance")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", action="store_true", help="print every trial")
    options = parser.parse_args()
    if options.read is not None:
        kept = json.loads(options.read.read_text())
        found, facts = [Cured(**one) for one in kept["repairs"]], kept["facts"]
    else:
        found, facts = _repaired_all(options), _facts(options.processes)
    print(summary(found))
    if options.output is not None:
        options.output.write_text(json.dumps({"facts": facts, "repairs": [asdict(one) for one in found]}, indent=1))
    if options.page is not None:
        options.page.write_text(page(found, facts))


def _repaired_all(options: argparse.Namespace) -> list[Cured]:
    only = frozenset(filter(None, options.only.split(",")))
    jobs = jobs_of(options.kinds.split(","), only, [int(seed) for seed in options.seeds.split(",")])
    found: list[Cured] = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for one in pool.imap_unordered(run, jobs):
            found.append(one)
            print(line_of(one), flush=True)
            if options.show or one.outcome == "raised":
                print(one.said, flush=True)
    return found


def _facts(processes: int) -> dict[str, object]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processes": processes,
    }


if __name__ == "__main__":
    main()
