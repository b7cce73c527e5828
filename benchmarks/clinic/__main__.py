"""The clinic: faulty, fixed and healthy trainings, and what evengrad says of each.

    python benchmarks/clinic -o clinic.json
    python benchmarks/clinic --only 1,8,14 --seeds 0 --show

Forty faulty programs with their fix, more of them, loops of their own, nine healthy programs and healthy architectures
before their first step. Each is trained by a plain loop, one torch thread, with a guard that only watches at its
default sampling; its log is judged by the rules as `evengrad diagnose` does. What only a checkup can show (a wrong
derivative of one's own) comes from a checkup of the first batch. A diagnosis is right when the first root
of its story is of a right family; its place, when that finding points to it. A program counts as right when it is on
most seeds. Prints what was said first for each, the confusion, recall by family, false alarms and times.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/

import torch

from clinic._cases import jobs_of, run
from clinic._judge import Case, confusion, programs_right
from clinic._page import page

# Where a second right answer was added later: the rules' word for it was as true as the first.
CHANGED = "103, 106, 125 and 206, to which a second right family was added"


def line_of(case: Case) -> str:
    """Show a case in one line."""
    if not case.families:
        mark = "FLAGGED" if case.flagged else "ok"
    else:
        family = "right" if case.family_right else "among" if case.among_roots else "WRONG" if case.told else "MISSED"
        mark = family + (" place" if case.place_right else "")
    metric = "-" if case.metric is None else f"{case.metric:.3f}"
    return (
        f"{case.what:<12} {case.number or '':>3} {case.name[:44]:<44} seed {case.seed}  {mark:<12} {metric:>10} "
        f"{case.seconds:5.1f} s  {' '.join(case.codes)}"
    )


def summary(cases: Sequence[Case]) -> str:
    """Print the figures of the promise."""
    lines = []
    forty = [case for case in cases if case.what == "faulty" and 0 < case.number <= 100]
    more = [case for case in cases if case.what == "faulty" and case.number > 100]
    for name, group in (("the forty", forty), ("further faults", more)):
        if group:
            family, place, count = programs_right(group)
            share = f"{sum(case.family_right for case in group)} and {sum(case.place_right for case in group)}"
            lines.append(
                f"{name}: family right on {family} of {count} programs, place on {place} ({share} of {len(group)})"
            )
    for what in ("fixed", "healthy", "architecture"):
        group = [case for case in cases if case.what == what]
        if group:
            flagged = sorted({f"{case.number or ''} {case.name}".strip() for case in group if case.flagged})
            number = sum(case.flagged for case in group)
            lines.append(f"{what}: {number} of {len(group)} flagged{': ' + '; '.join(flagged) if flagged else ''}")
    times = sorted(case.seconds for case in cases)
    judging = sorted(case.judging_s for case in cases)
    if times:
        lines.append(
            f"time per case: median {times[len(times) // 2]:.1f} s, at most {times[-1]:.1f} s; judging a log: median "
            f"{judging[len(judging) // 2]:.2f} s, at most {judging[-1]:.2f} s"
        )
    return "\n".join(lines)


def recall(cases: Sequence[Case]) -> str:
    """Print recall by family, and what was told first instead."""
    wanted: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.families:
            wanted[case.families[0]].append(case)
    head = f"{'family':<22} {'runs':>5} {'right':>6} {'place':>6}  told first instead"
    rows = [head, "-" * len(head)]
    confused = confusion(cases)
    for family, group in sorted(wanted.items()):
        others = ", ".join(f"{told} {count}" for want, told, count in confused if want == family and told != family)
        right, place = sum(case.family_right for case in group), sum(case.place_right for case in group)
        rows.append(f"{family:<22} {len(group):>5} {right:>6} {place:>6}  {others}")
    return "\n".join(rows)


def main() -> None:
    """Run the clinic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="also write everything as JSON")
    parser.add_argument("--page", type=Path, help="also write the page of the docs")
    parser.add_argument("--only", default="", help="numbers or names, with commas between")
    parser.add_argument("--kinds", default="faulty,fixed,loop,healthy,architecture")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--show", action="store_true", help="print the findings of each case")
    chosen = parser.parse_args()
    jobs = jobs_of(
        chosen.kinds.split(","),
        frozenset(part.strip() for part in chosen.only.split(",") if part.strip()),
        [int(seed) for seed in chosen.seeds.split(",")],
    )
    cases: list[Case] = []
    with multiprocessing.get_context("spawn").Pool(min(chosen.jobs, max(len(jobs), 1))) as pool:
        for case in pool.imap_unordered(run, jobs):
            cases.append(case)
            print(line_of(case), flush=True)
            if chosen.show or case.codes == ("raised",):
                print("    " + case.said.replace("\n", "\n    "), flush=True)
    cases.sort(key=lambda case: (case.what, case.number, case.name, case.seed))
    print(f"\n{recall(cases)}\n\n{summary(cases)}")
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    if chosen.page is not None:
        chosen.page.write_text(page(cases, facts, CHANGED), encoding="utf-8")
    if chosen.output is not None:
        chosen.output.write_text(json.dumps({"facts": facts, "cases": [asdict(case) for case in cases]}, indent=1))


if __name__ == "__main__":
    main()
