"""The clinic's result as a page of the docs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from clinic._judge import Case, confusion, programs_right

HEAD = """# The clinic

What evengrad says of trainings with a known fault, of the same trainings without it, and of healthy ones. Written by
`python benchmarks/clinic --page docs/clinic.md` on {date}: torch {torch}, {cores} cores, one thread for each training,
seeds {seeds}.

Forty faulty programs are rebuilt from published collections, with a fix that works; further faults, and loops with a
mistake in the loop, are our own. Each is trained by a plain loop with a guard that only watches at its default
sampling, and the log is judged as `evengrad diagnose` does. What only a checkup can show, a wrong derivative of one's
own, comes from a checkup of the first batch. The answers that are right for a program, and the places, were written
down before the rules saw it, but for {changed}.

*Right* is a diagnosis whose first root is of a right family; its *place* is right when that finding points to it. A
program counts as right when it is on most seeds. Healthy programs, architectures and fixed programs are flagged by any
finding at all. These programs are examples that the rules were built beside: expect less on trainings that nobody here
has seen.
"""


def page(cases: Sequence[Case], facts: Mapping[str, object], changed: str) -> str:
    """Write the page."""
    seeds = ", ".join(str(seed) for seed in sorted({case.seed for case in cases}))
    parts = [
        HEAD.format(seeds=seeds, changed=changed, **facts),
        "## In short\n\n" + _short(cases),
        "## By family\n\n" + _by_family(cases),
        "## The forty\n\n" + _programs([case for case in cases if 0 < case.number <= 100], cases),
        "## Further faults, and loops\n\n" + _programs([case for case in cases if case.number > 100], cases),
        "## False alarms\n\n" + _alarms(cases),
    ]
    return "\n".join(parts)


def _short(cases: Sequence[Case]) -> str:
    rows = ["| what | result |", "| --- | --- |"]
    for name, low, high in (("the forty", 1, 100), ("further faults and loops", 101, 999)):
        group = [case for case in cases if case.what == "faulty" and low <= case.number <= high]
        if group:
            family, place, count = programs_right(group)
            rows.append(f"| {name}: family right | {family} of {count} |")
            rows.append(f"| {name}: place right | {place} of {count} |")
    for what, name in (
        ("fixed", "fixed programs flagged"),
        ("healthy", "healthy programs and loops flagged"),
        ("architecture", "healthy architectures before their first step flagged"),
    ):
        group = [case for case in cases if case.what == what]
        if group:
            flagged = len({case.name for case in group if case.flagged})
            runs = sum(case.flagged for case in group)
            rows.append(f"| {name} | {flagged} of {len({case.name for case in group})} ({runs} of {len(group)} runs) |")
    trained = [case.seconds for case in cases if case.steps]
    judged = [case.judging_s for case in cases if case.steps]
    rows.append(
        f"| time for a case, training and judging | median {median(trained):.1f} s, at most {max(trained):.1f} s |"
    )
    rows.append(f"| time to judge a log | median {median(judged):.2f} s, at most {max(judged):.2f} s |")
    return "\n".join(rows) + "\n"


def _by_family(cases: Sequence[Case]) -> str:
    wanted: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.families:
            wanted[case.families[0]].append(case)
    confused = confusion(cases)
    rows = ["| family of the fault | runs | right | place | told first instead |", "| --- | --- | --- | --- | --- |"]
    for family, group in sorted(wanted.items()):
        others = ", ".join(f"{told} {count}" for want, told, count in confused if want == family and told != family)
        right, place = sum(case.family_right for case in group), sum(case.place_right for case in group)
        rows.append(f"| {family} | {len(group)} | {right} | {place} | {others} |")
    return "\n".join(rows) + "\n"


def _programs(group: Sequence[Case], cases: Sequence[Case]) -> str:
    fixed: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        if case.what == "fixed":
            fixed[case.number].append(case)
    faulty: dict[int, list[Case]] = defaultdict(list)
    for case in group:
        if case.what == "faulty":
            faulty[case.number].append(case)
    rows = [
        "| # | program | right answers | told first | right | place | metric | fixed: metric | fixed: flagged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, same in sorted(faulty.items()):
        told = "; ".join(dict.fromkeys(case.told[0] if case.told else "nothing" for case in same))
        right, place = sum(case.family_right for case in same), sum(case.place_right for case in same)
        after = fixed.get(number, [])
        flagged = f"{sum(case.flagged for case in after)} of {len(after)}" if after else ""
        answers = ", ".join(same[0].families)
        rows.append(
            f"| {number} | {same[0].name} | {answers} | {told} | {right} of {len(same)} | {place} | {_metrics(same)} | "
            f"{_metrics(after)} | {flagged} |"
        )
    return "\n".join(rows) + "\n"


def _metrics(cases: Sequence[Case]) -> str:
    return ", ".join("-" if case.metric is None else f"{case.metric:.3g}" for case in cases)


def _alarms(cases: Sequence[Case]) -> str:
    flagged = [case for case in cases if not case.families and case.flagged]
    if not flagged:
        return "None.\n"
    return "\n".join(f"- {case.what} {case.name}, seed {case.seed}: {', '.join(case.codes)}" for case in flagged) + "\n"
