"""What a run log costs: bytes, microseconds to write and to read, per step, without samples and with each kind.

    python benchmarks/run_log.py -o run_log.json

CPU seconds of one process, the best of some runs, in the system's folder for temporary files: with no `fsync` in it, a
disk hardly matters. What a sampled step costs is on top of a step that is not sampled.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading, TensorReading
from evengrad.runlog import Follower, Writer, read

THINGS = 200
NAMES = tuple(f"blocks.{i}.attention.weight" for i in range(THINGS))
LAYER = LayerReading(name="", kind="Linear", weighted=True, numel=65536, units=256, observations=256, zero_frac=0.1)
WEIGHT = ParameterReading(name="", numel=65536, fan_in=256, weight_rms=0.1, weight_mean=0.01)
SHARES = dict.fromkeys(("grad_zero_frac", "grad_tiny_frac", "still_frac", "moved_ratio", "row_spread"), 0.1)
TENSOR = TensorReading(name="input", shape=(32, 512), mean=0.0123456789, std=1.123456789, features=512, minimum=-3.1)


def sampled() -> dict[str, dict[str, Any]]:
    layers = tuple(replace(LAYER, name=n, grad_rms=1e-3 * i, weight_norm=3.0 + i) for i, n in enumerate(NAMES))
    weights = tuple(replace(WEIGHT, name=n, update_ratio=1e-5 * i, **SHARES) for i, n in enumerate(NAMES))
    ends = Ends(inputs=(TENSOR, TENSOR), output=TENSOR, target=TENSOR, loss_ops=("NllLoss", "LogSoftmax"))
    each = {"layers": layers, "weights": weights, "ends": ends}
    return {"nothing": {}, **{name: {name: content} for name, content in each.items()}, "everything": each}


def best_us(action: Callable[[], object], times: int) -> float:
    best_s = float("inf")
    for _ in range(times):
        start = time.process_time()
        action()
        best_s = min(best_s, time.process_time() - start)
    return best_s * 1e6


def measured(content: dict[str, Any], steps: int, runs: int) -> dict[str, float]:
    norms = tuple(map(float, range(THINGS)))
    readings = [Reading(step=step, loss=0.5, lrs=(0.1,), grad_norms=norms, **content) for step in range(steps)]
    write_us = read_us = float("inf")
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:

            def write(path: str = directory) -> None:
                with Writer(path, parameters=NAMES, flush_every_s=1e9) as log:
                    for reading in readings:
                        log.append(reading)

            write_us = min(write_us, best_us(write, 1))
            read_us = min(read_us, best_us(lambda path=directory: read(path), 3))
            size_bytes = sum(path.stat().st_size for path in Path(directory).glob("*.arrows"))
    return {"bytes": size_bytes / steps, "write_us": write_us / steps, "read_us": read_us / steps}


def poll_us() -> float:
    with tempfile.TemporaryDirectory() as directory:
        with Writer(directory, parameters=NAMES) as log:
            log.append(Reading(**sampled()["everything"]))
        follower = Follower(directory)
        follower.poll()
        return best_us(follower.poll, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("run_log.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    results = {name: measured(content, options.steps, options.runs) for name, content in sampled().items()}
    plain = results["nothing"]
    for name, result in results.items():
        if name != "nothing":
            results[name] = {key: result[key] - plain[key] for key in result}
        print(f"{name:12}" + "".join(f"{value:12.1f} {key}" for key, value in results[name].items()))
    poll = poll_us()
    print(f"poll without news {poll:.0f} us")
    facts = {"platform": platform.platform(), "python": platform.python_version(), "things": THINGS}
    options.output.write_text(json.dumps({"facts": facts, "per_step": results, "poll_us": poll}, indent=1))


if __name__ == "__main__":
    main()
