"""Plots as characters: sparklines, bars and heat maps that a terminal can show."""

import math
from collections.abc import Sequence

import numpy as np

from evengrad.report._grid import Grid, pooled

BLOCKS = "▁▂▃▄▅▆▇█"
ZERO = "·"
BAD = "!"


def bar(decades: float, *, full_decades: float = 10.0, width: int = 20) -> str:
    """Draw a size as a bar, an eighth of a character fine; beyond `full_decades` it is full, NaN is empty.

    Example:
        >>> bar(5.0, width=4), bar(1.0, full_decades=10.0, width=5)
        ('██  ', '▌    ')
    """
    share = 0.0 if math.isnan(decades) or full_decades <= 0 else min(1.0, max(0.0, abs(decades) / full_decades))
    eighths = round(share * width * 8)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return drawn.ljust(width)


def sparkline(values: Sequence[float | None], low: float, high: float, *, width: int = 60) -> str:
    """Draw values as blocks between two limits; of each stretch the largest counts, and one NaN marks it.

    Example:
        >>> sparkline([0.0, 1.0, float("nan")], 0.0, 1.0)
        '▁█!'
    """
    each = max(1, -(-len(values) // width))
    return "".join(_one(values[start : start + each], low, high) for start in range(0, len(values), each))


def _one(stretch: Sequence[float | None], low: float, high: float) -> str:
    if any(value is None or not math.isfinite(value) for value in stretch):
        return BAD
    largest = max(value for value in stretch if value is not None)
    return BLOCKS[_level(largest, low, high)]


def _level(value: float, low: float, high: float) -> int:
    share = (value - low) / (high - low) if high > low else 0.5
    return min(7, max(0, int(share * 8)))


def heat_rows(
    grid: Grid, low: float, high: float, *, columns: int = 60, most: int = 30
) -> list[tuple[str, str, tuple[float, ...]]]:
    """Give name, blocks and norms of the rows worth seeing: half the strangest, half evenly over the depth."""
    narrow = pooled(grid, most_rows=max(1, len(grid.rows)), most_steps=columns)
    chosen = chosen_rows(narrow, most)
    decades_LT, zero_LT, bad_LT = narrow.decades_LT, narrow.zero_LT, narrow.bad_LT
    drawn: list[tuple[str, str, tuple[float, ...]]] = []
    for row in chosen:
        cells = (
            BAD if bad else ZERO if zero else BLOCKS[_level(float(size), low, high)]
            for size, zero, bad in zip(decades_LT[row], zero_LT[row], bad_LT[row], strict=True)
        )
        drawn.append((narrow.rows[row], "".join(cells), tuple(float(norm) for norm in narrow.norm_LT[row])))
    return drawn


def chosen_rows(grid: Grid, most: int) -> list[int]:
    """Choose rows in their order: those furthest from the middle of the map, and a sample of the rest."""
    count = len(grid.rows)
    if count <= most:
        return list(range(count))
    decades_LT = grid.decades_LT
    middle = float(np.nanmedian(decades_LT)) if np.isfinite(decades_LT).any() else 0.0
    distance_LT = np.abs(np.nan_to_num(decades_LT - middle))
    strange_L = distance_LT.max(axis=1) + 1e3 * grid.bad_LT.any(axis=1) + 1e2 * grid.zero_LT.mean(axis=1)
    even = {round(place) for place in np.linspace(0, count - 1, most // 2)}
    kept = set(even)
    for row in np.argsort(-strange_L, kind="stable"):
        if len(kept) >= most:
            break
        kept.add(int(row))
    return sorted(kept)
