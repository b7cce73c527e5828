"""A heat map as an array: checked, pooled to a size that a page can hold, and split into its three kinds of cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from evengrad.nouns import HeatMap, SettingError

MOST_ROWS = 300
MOST_STEPS = 600


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Gradient norms over layers and steps.

    Args:
        title: What is shown.
        rows: One name per row; a pooled row is named after its first and last layer.
        steps: The first step of each column.
        norm_LT: The norms; NaN and Inf are kept.
        rows_each: Layers per row.
        steps_each: Sampled steps per column.
        row_axis: What a row stands for.
        column_axis: What a column stands for.
    """

    title: str
    rows: tuple[str, ...]
    steps: tuple[int, ...]
    norm_LT: NDArray[np.float64]
    rows_each: int = 1
    steps_each: int = 1
    row_axis: str = "layer"
    column_axis: str = "step"

    @property
    def bad_LT(self) -> NDArray[np.bool_]:  # noqa: N802
        """Where the norm is not finite; a negative number is not a norm."""
        return ~np.isfinite(self.norm_LT) | (self.norm_LT < 0)

    @property
    def zero_LT(self) -> NDArray[np.bool_]:  # noqa: N802
        """Where the norm is exactly zero."""
        return np.asarray(self.norm_LT == 0)

    @property
    def decades_LT(self) -> NDArray[np.float64]:  # noqa: N802
        """The logarithm to base ten; NaN where there is none."""
        has_one_LT = ~(self.bad_LT | self.zero_LT)
        return np.log10(self.norm_LT, out=np.full(self.norm_LT.shape, np.nan), where=has_one_LT)

    @property
    def range_decades(self) -> tuple[float, float]:
        """Smallest and largest logarithm; (0, 0) where there is none."""
        decades = self.decades_LT[~np.isnan(self.decades_LT)]
        return (float(decades.min()), float(decades.max())) if decades.size else (0.0, 0.0)


def grid_of(heat_map: HeatMap) -> Grid:
    """Check a heat map and turn it into an array.

    Raises:
        SettingError: Rows, steps and values are not of one size.
    """
    rows, columns = len(heat_map.rows), len(heat_map.steps)
    sizes = {len(row) for row in heat_map.values}
    if len(heat_map.values) != rows or sizes - {columns}:
        raise SettingError(
            "HeatMap.values",
            came=f"{len(heat_map.values)} rows of {', '.join(map(str, sorted(sizes)[:5])) or 'no'} values",
            wanted=f"{rows} rows of {columns} values",
        )
    norm_LT = np.asarray(heat_map.values, dtype=np.float64).reshape(rows, columns)
    return Grid(
        title=heat_map.title,
        rows=heat_map.rows,
        steps=heat_map.steps,
        norm_LT=norm_LT,
        row_axis=heat_map.row_axis,
        column_axis=heat_map.column_axis,
    )


def pooled(grid: Grid, *, most_rows: int = MOST_ROWS, most_steps: int = MOST_STEPS) -> Grid:
    """Shrink a grid by taking the largest of each block, so that one spike stays; one NaN makes its block NaN."""
    rows_each = max(1, -(-len(grid.rows) // most_rows))
    steps_each = max(1, -(-len(grid.steps) // most_steps))
    if rows_each == steps_each == 1 or not grid.norm_LT.size:
        return grid
    norm_LT = np.where(grid.norm_LT < 0, np.nan, grid.norm_LT)  # a maximum would lose what is wrong
    norm_LT = np.maximum.reduceat(norm_LT, np.arange(0, len(grid.rows), rows_each), axis=0)
    norm_LT = np.maximum.reduceat(norm_LT, np.arange(0, len(grid.steps), steps_each), axis=1)
    starts = range(0, len(grid.rows), rows_each)
    blocks = [grid.rows[start : start + rows_each] for start in starts]
    return Grid(
        title=grid.title,
        rows=tuple(block[0] if len(block) == 1 else f"{block[0]} … {block[-1]}" for block in blocks),
        steps=grid.steps[::steps_each],
        norm_LT=norm_LT,
        rows_each=grid.rows_each * rows_each,
        steps_each=grid.steps_each * steps_each,
        row_axis=grid.row_axis,
        column_axis=grid.column_axis,
    )


def scales_of(grids: Sequence[Grid]) -> dict[tuple[str, str], tuple[float, float]]:
    """Give each kind of heat map one colour scale, in decades, so that before and after compare.

    Returns:
        By row axis and column axis: the smallest and the largest logarithm, at least half a decade apart.
    """
    scales: dict[tuple[str, str], tuple[float, float]] = {}
    for grid in grids:
        if not (~(grid.bad_LT | grid.zero_LT)).any():
            continue
        low, high = grid.range_decades
        known = scales.get((grid.row_axis, grid.column_axis), (low, high))
        scales[grid.row_axis, grid.column_axis] = min(low, known[0]), max(high, known[1])
    return {axes: (low, max(high, low + 0.5)) for axes, (low, high) in scales.items()}


def scale_of(grid: Grid, scales: dict[tuple[str, str], tuple[float, float]]) -> tuple[float, float]:
    """Look up the scale of a grid; one without any number has none and gets a decade."""
    return scales.get((grid.row_axis, grid.column_axis), (0.0, 1.0))


def heat_map_of(grid: Grid) -> HeatMap:
    """Turn a grid back into the noun."""
    values: Any = grid.norm_LT.tolist()
    return HeatMap(
        title=grid.title,
        rows=grid.rows,
        steps=grid.steps,
        values=tuple(tuple(row) for row in values),
        row_axis=grid.row_axis,
        column_axis=grid.column_axis,
    )
