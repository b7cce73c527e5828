"""Python numbers as columns and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evengrad.runlog._arrow import Kind, Values


def nullable(numbers: Sequence[float | None], kind: Kind) -> Values:
    """Tell None from NaN: NaN is a number that came out, None says that nobody looked."""
    if kind.startswith("float"):
        with np.errstate(over="ignore"):
            wide = np.array(numbers, dtype=np.float64)  # None becomes NaN
            if not np.isnan(wide).any():
                return Values(flat=wide.astype(kind))
    missing = np.array([number is None for number in numbers], dtype=bool)
    known = [0 if number is None else number for number in numbers]
    flat = real_array(known, kind) if kind.startswith("float") else np.array(known, dtype=kind)
    return Values(flat=flat, missing=missing if missing.any() else None)


def lists(rows: Sequence[Sequence[float]], kind: Kind) -> Values:
    """Put lists of any length behind one another."""
    flat = real_array([number for row in rows for number in row], kind)
    return Values(flat=flat, lengths=np.array([len(row) for row in rows], dtype=np.int32))


def real_array(numbers: Sequence[float], kind: Kind) -> np.ndarray[Any, Any]:
    """Round to the kind of the column; what is too large for it becomes infinite, as it would on the device."""
    with np.errstate(over="ignore"):
        return np.array(numbers, dtype=np.float64).astype(kind)


def texts(rows: Sequence[str]) -> Values:
    """Put texts behind one another; half a surrogate pair becomes an escape, which in JSON means the same."""
    encoded = [row.encode(errors="backslashreplace") for row in rows]
    flat = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return Values(flat=flat, lengths=np.array([len(row) for row in encoded], dtype=np.int32))


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


def plain_texts(values: Values) -> list[str | None]:
    """Turn a column of texts into strings, None where one is no text."""
    data, begin, rows = values.flat.tobytes(), 0, list[str | None]()
    for length in [] if values.lengths is None else values.lengths.tolist():
        try:
            rows.append(data[begin : begin + length].decode())
        except UnicodeDecodeError:
            rows.append(None)
        begin += length
    return rows
