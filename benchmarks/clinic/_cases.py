"""The cases of the clinic, and running one of them in a process of its own."""

import traceback
from collections.abc import Sequence

import torch

from clinic import ARCHITECTURES, EXTRA, HEALTHY, LOOPS, PROGRAMS
from clinic._judge import Case, right_family, right_place
from clinic._watch import Seen, watch_architecture, watch_loop, watch_task

Job = tuple[str, str, int]  # what, name or number, seed


def jobs_of(kinds: Sequence[str], only: frozenset[str], seeds: Sequence[int]) -> list[Job]:
    """List what is to be run."""
    programs = [str(program.number) for program in (*PROGRAMS, *EXTRA)]
    found: list[tuple[str, str]] = []
    found += [("faulty", number) for number in programs]
    found += [("fixed", number) for number in programs]
    found += [("loop", str(loop.number)) for loop in LOOPS]
    found += [("healthy", healthy.name) for healthy in HEALTHY]
    found += [("architecture", architecture.name) for architecture in ARCHITECTURES]
    chosen = [(what, name) for what, name in found if what in kinds and (not only or name in only)]
    return [(what, name, seed) for seed in seeds for what, name in chosen]


def run(job: Job) -> Case:
    """Run one case; what raises is a case without a diagnosis."""
    torch.set_num_threads(1)
    try:
        return _case(job)
    except Exception:
        what, name, seed = job
        return Case(what=what, number=-1, name=name, seed=seed, codes=("raised",), said=traceback.format_exc())


def _case(job: Job) -> Case:
    what, name, seed = job
    number, families, place = 0, (), ()
    if what in {"faulty", "fixed"}:
        program = next(one for one in (*PROGRAMS, *EXTRA) if str(one.number) == name)
        number, name = program.number, program.name
        if what == "faulty":
            families, place = program.families, program.place
        seen = watch_task(program.faulty if what == "faulty" else program.fixed, seed)
    elif what == "loop":
        loop = next(one for one in LOOPS if str(one.number) == name)
        number, name, families, place = loop.number, loop.name, loop.families, loop.place
        what = "healthy" if loop.healthy else "faulty"
        seen = watch_loop(loop, seed)
    elif what == "healthy":
        seen = watch_task(next(one for one in HEALTHY if one.name == name).task, seed)
    else:
        seen = watch_architecture(next(one for one in ARCHITECTURES if one.name == name), seed)
    return _judged(Case(what=what, number=number, name=name, seed=seed, families=families), place, seen)


def _judged(case: Case, place: Sequence[str], seen: Seen) -> Case:
    first, among = right_family(seen.findings, case.families)
    return Case(
        **{key: getattr(case, key) for key in ("what", "number", "name", "seed", "families")},
        told=tuple(finding.family for finding in seen.findings if not finding.follows),
        codes=tuple(finding.code for finding in seen.findings),
        family_right=first,
        among_roots=among,
        place_right=first and right_place(seen.findings, case.families, place),
        metric=seen.metric,
        seconds=seen.seconds,
        judging_s=seen.judging_s,
        steps=seen.steps,
        said="\n".join(
            f"{'  ' * bool(one.follows)}{one.code} {one.severity} at {', '.join(one.where[:4])} steps {one.when}: "
            f"{one.message}"
            for one in seen.findings
        ),
    )
