"""Python numbers as columns and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evengrad.runlog._arrow import Kind, Values


def nullable(numbers: Sequence[float | None], kind: Kind) -> Values:
    """Tell None from NaN: NaN is a number that came out, None says that nobody looked."""
    missing = np.array([number is None for number in numbers], dtype=bool)
    flat = real_array([0.0 if number is None else number for number in numbers], kind)
    return Values(flat=flat, missing=missing if missing.any() else None)


def lists(rows: Sequence[Sequence[float]], kind: Kind) -> Values:
    """Put lists of any length behind one another."""
    flat = real_array([number for row in rows for number in row], kind)
    return Values(flat=flat, lengths=np.array([len(row) for row in rows], dtype=np.int32))


def real_array(numbers: Sequence[float], kind: Kind) -> np.ndarray[Any, Any]:
    """Round to the kind of the column; what is too large for it becomes infinite, as it would on the device."""
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype=np.float64).astype(kind)


def plain(values: Values) -> list[Any]:
    """Turn a column into Python numbers, None where it is null."""
    numbers: list[Any] = values.flat.tolist()
    if values.missing is None:
        return numbers
    return [None if missing else number for number, missing in zip(numbers, values.missing.tolist(), strict=True)]


def plain_lists(values: Values) -> list[tuple[Any, ...]]:
    """Turn a column of lists into tuples."""
    numbers, begin, rows = plain(values), 0, []
    for length in [] if values.lengths is None else values.lengths.tolist():
        rows.append(tuple(numbers[begin : begin + length]))
        begin += length
    return rows
