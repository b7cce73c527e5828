"""How long `import evengrad` takes in a fresh process; the goal is less than 0.3 s.

    python benchmarks/import_time.py -o import.json

Each process measures the import itself, without the start of Python. The first processes fill the file cache and do
not count. Nothing is imported with it, which is what keeps it short; the parts that never need torch are shown too.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_S = 0.3
STATEMENTS = (
    "import evengrad",
    "import evengrad.runlog",
    "import evengrad.diagnose",
    "import evengrad.report",
    "from evengrad import Guard",
)


def seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measured(statement: str, processes: int, warm_up: int = 2) -> dict[str, float]:
    times = [seconds(statement) for _ in range(processes + warm_up)][warm_up:]
    return {"min_s": min(times), "median_s": statistics.median(times), "max_s": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-n", "--processes", type=int, default=10)
    arguments = parser.parse_args()
    rows = {statement: measured(statement, arguments.processes) for statement in STATEMENTS}
    result = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "processes": arguments.processes,
        "goal_s": GOAL_S,
        "reached": rows["import evengrad"]["median_s"] < GOAL_S,
        "statements": rows,
    }
    for statement, row in rows.items():
        print(f"{statement:<27} min {row['min_s']:.3f} s   median {row['median_s']:.3f} s   max {row['max_s']:.3f} s")
    print(f"goal for `import evengrad`: less than {GOAL_S} s; {'reached' if result['reached'] else 'missed'}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
