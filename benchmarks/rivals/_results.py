"""What came out of the comparison, and who is ahead."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean

CLOSE = 0.02  # metrics within this of each other count as equal: seeds differ by as much


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How one method did on one program and seed.

    Args:
        name: Of the method.
        ended: Its own verdict.
        label: What it hands out; empty for the program as it was.
        metrics: Of what it hands out, trained anew; None where the training failed.
        own: Metric of the model that it hands out, where it hands out one.
        trainings: Rows that it has seen, in whole trainings of the faulty program.
        trials: Trainings that it began.
        seconds: Without the trainings that count.
    """

    name: str
    ended: str
    label: str
    metrics: tuple[float | None, ...]
    own: float | None = None
    trainings: float = 0.0
    trials: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One program and seed.

    Args:
        key: Of the program.
        seed: Of the searches.
        faulty: Metrics of the program as it was.
        fixed: Metrics of the reference fix.
        budget: What each rival may see, in whole trainings.
        findings: Codes of what evengrad found.
        methods: evengrad first.
    """

    key: str
    seed: int
    faulty: tuple[float | None, ...]
    fixed: tuple[float | None, ...]
    budget: float
    findings: tuple[str, ...]
    methods: tuple[Method, ...]


def average(metrics: Iterable[float | None]) -> float:
    """Average metrics; a training that failed counts as 0."""
    return mean(metric if metric is not None and isfinite(metric) else 0.0 for metric in metrics)


def averages(results: Sequence[Result]) -> dict[str, float]:
    """Average over repeats and seeds: of the faulty program, of each method and of the fix."""
    names = [method.name for method in results[0].methods]
    of_methods = {
        name: average(metric for result in results for metric in _method(result, name).metrics) for name in names
    }
    return {
        "faulty": average(metric for result in results for metric in result.faulty),
        **of_methods,
        "fix": average(metric for result in results for metric in result.fixed),
    }


def of_keys(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Sort results by program."""
    return {key: [one for one in results if one.key == key] for key in dict.fromkeys(one.key for one in results)}


def standing(results: Sequence[Result], rival: str) -> dict[str, list[str]]:
    """Sort the programs by whether evengrad is `better`, `equal` or `worse` than a rival there."""
    found: dict[str, list[str]] = {"better": [], "equal": [], "worse": []}
    for key, same in of_keys(results).items():
        numbers = averages(same)
        gap = numbers["evengrad"] - numbers[rival]
        found["equal" if abs(gap) <= CLOSE else "better" if gap > 0 else "worse"].append(key)
    return found


def _method(result: Result, name: str) -> Method:
    return next(method for method in result.methods if method.name == name)
