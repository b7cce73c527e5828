"""The gradient norms of a run, as rules about their course read them."""

from collections.abc import Sequence
from math import hypot, isfinite, log10
from statistics import median

from evengrad.diagnose._trend import FROM_MAD
from evengrad.nouns import Reading, Record


def total_norm_of(reading: Reading) -> float | None:
    """The norm of all gradients together; None where it was not measured, is zero, or is not finite."""
    total = reading.total_norm
    if total is None and reading.grad_norms:
        total = hypot(*reading.grad_norms)
    return total if total is not None and isfinite(total) and total > 0.0 else None


def log_norms(readings: Sequence[Reading]) -> list[tuple[int, float]]:
    """List the place of each reading with a norm, and its logarithm to base ten."""
    found = ((place, total_norm_of(reading)) for place, reading in enumerate(readings))
    return [(place, log10(norm)) for place, norm in found if norm is not None]


def spread_of(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation, which outliers do not move.

    Example:
        >>> round(spread_of([0.0, 1.0, 2.0, 3.0, 100.0]), 3)
        1.483
    """
    middle = median(values)
    return FROM_MAD * median(abs(value - middle) for value in values)


def largest_parameters(reading: Reading, record: Record, most: int = 3) -> tuple[str, ...]:
    """Name the few parameters that make up at least half of the squared norm; none where it is spread over many."""
    norms = reading.grad_norms
    if not norms or len(norms) != len(record.parameters) or not all(map(isfinite, norms)):
        return ()
    whole = hypot(*norms)
    if not 0.0 < whole < float("inf"):
        return ()
    order = sorted(range(len(norms)), key=lambda index: -norms[index])[:most]
    held = 0.0
    for count, index in enumerate(order, start=1):
        held += (norms[index] / whole) ** 2
        if held >= 0.5:
            return tuple(record.parameters[place] for place in sorted(order[:count]))
    return ()
