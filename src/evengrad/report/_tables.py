"""The numbers behind each plot, as tables for those who cannot see it or do not trust it."""

from collections.abc import Sequence

import numpy as np

from evengrad.report import _clean
from evengrad.report._grid import Grid
from evengrad.report._lines import Line
from evengrad.report._words import NOTHING, finite, number

Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]


def heat_map_table(grid: Grid) -> Table:
    """Sum up each row of a heat map: its ends, its spread, and the cells that are zero or not finite."""
    head = (_clean.name(grid.row_axis), "first", "last", "smallest", "median", "largest", "zero", "not finite")
    return head, tuple(
        _row(_clean.name(row), norm_T, zero_T, bad_T)
        for row, norm_T, zero_T, bad_T in zip(grid.rows, grid.norm_LT, grid.zero_LT, grid.bad_LT, strict=True)
    )


def _row(row: str, norm_T: np.ndarray, zero_T: np.ndarray, bad_T: np.ndarray) -> tuple[str, ...]:
    good = norm_T[~bad_T]
    ends = [number(float(norm_T[0])), number(float(norm_T[-1]))] if norm_T.size else [NOTHING, NOTHING]
    spread = [number(float(what(good))) for what in (np.min, np.median, np.max)] if good.size else [NOTHING] * 3
    return (row, *ends, *spread, *(_share(mask_T) for mask_T in (zero_T, bad_T)))


def _share(mask_T: np.ndarray) -> str:
    return f"{int(mask_T.sum())} of {mask_T.size}" if mask_T.any() else "0"


def loss_table(lines: Sequence[Line]) -> Table:
    """Give each curve at five places, its smallest value, and where it stops being finite."""
    head = ("curve", "points", "first", "at 1/4", "at 1/2", "at 3/4", "last", "smallest", "stops being finite")
    return head, tuple(_loss_row(line) for line in lines)


def _loss_row(line: Line) -> tuple[str, ...]:
    size = len(line.full)
    places = [line.full[round(part / 4 * (size - 1))] for part in range(5)] if size else [None] * 5
    known = finite(line.full)
    breaks = "; ".join(f"{what} at step {step}" for step, _, what in line.breaks[:3]) or "never"
    smallest = number(min(known)) if known else NOTHING
    return (line.label, str(size), *(number(value) for value in places), smallest, breaks)
