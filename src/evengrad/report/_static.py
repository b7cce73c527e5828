"""Plots without a script: images and SVG that a page shows at once, in print, and where JavaScript is off."""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from evengrad.report import _clean
from evengrad.report._colours import png
from evengrad.report._grid import Grid
from evengrad.report._labels import short_labels
from evengrad.report._lines import Line, logarithmic, thinned
from evengrad.report._words import finite, number

WIDTH, HEIGHT = 1000, 300  # of an SVG's own units; it is stretched to its place


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A label at a share of an axis, 0 at the top or the left."""

    text: str
    at_frac: float


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A heat map as an image with labels."""

    image: str
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    height_rem: float


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """A line as the points of an SVG polyline; several when there are gaps."""

    group: str
    strokes: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Loss curves as SVG lines with labels."""

    paths: tuple[Path, ...]
    breaks: tuple[tuple[float, float], ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]


def picture_of(grid: Grid, low: float, high: float) -> Picture:
    """Draw a grid as a PNG inside a data address."""
    rows, columns = len(grid.rows), len(grid.steps)
    each = max(1, -(-rows // 24))
    labels, _ = short_labels(grid.rows)
    shown = sorted({0, columns // 2, columns - 1})
    return Picture(
        image="data:image/png;base64," + base64.b64encode(png(grid, low, high)).decode(),
        rows=tuple(Tick(text=_clean.tick(labels[row], 30), at_frac=(row + 0.5) / rows) for row in range(0, rows, each)),
        columns=tuple(
            Tick(text=str(grid.steps[at]), at_frac=at / (columns - 1) if columns > 1 else 0.5) for at in shown
        ),
        height_rem=min(42.0, max(9.0, 1.15 * rows)),
    )


def chart_of(lines: Sequence[Line]) -> Chart:
    """Draw loss curves as polylines over a common pair of axes."""
    values = finite([value for line in lines for value in line.values])
    steps = [step for line in lines for step in line.steps]
    if not values or not steps:
        return Chart(paths=(), breaks=(), rows=(), columns=())
    log = logarithmic(lines)
    low, high = _height(min(values), log), _height(max(values), log)
    first, last = min(steps), max(steps)

    def place(step: int, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) if last > first else 0.5
        up = (_height(value, log) - low) / (high - low) if high > low else 0.5
        return round(across * WIDTH, 1), round((0.03 + 0.94 * (1 - up)) * HEIGHT, 1)

    middle = 10 ** ((low + high) / 2) if log else (low + high) / 2
    return Chart(
        paths=tuple(Path(group=line.group, strokes=_strokes(line, place)) for line in lines),
        breaks=tuple(
            place(step, max(values) if value is None else value) for line in lines for step, value, _ in line.breaks
        ),
        rows=(
            Tick(text=f"{max(values):.3g}", at_frac=0.03),
            Tick(text=f"{middle:.3g}", at_frac=0.5),
            Tick(text=f"{min(values):.3g}", at_frac=0.97),
        ),
        columns=tuple(
            Tick(text=str(step), at_frac=(step - first) / (last - first) if last > first else 0.5)
            for step in sorted({first, (first + last) // 2, last})
        ),
    )


def spark(values: Sequence[float]) -> str:
    """Give the points of a small line, 100 by 20; empty when fewer than two values are finite.

    Example:
        >>> spark([1.0, 0.5, 0.0])
        '0,1 50,10 100,19'
    """
    points = [at for at in thinned(values, most=40) if math.isfinite(values[at])]
    if len(points) < 2:
        return ""
    log = min(values[at] for at in points) > 0 and max(values[at] for at in points) > 100 * min(
        values[at] for at in points
    )
    heights = [_height(values[at], log) for at in points]
    low, high = min(heights), max(heights)
    if high == low:
        low, high = low - 1.0, high + 1.0
    return " ".join(
        f"{at / (len(values) - 1) * 100:.4g},{1 + 18 * (high - height) / (high - low):.3g}"
        for at, height in zip(points, heights, strict=True)
    )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One layer of a heat map that has a single step."""

    row: str
    text: str
    kind: str
    frac: float


def bars_of(grid: Grid, low: float, high: float) -> tuple[Bar, ...]:
    """Draw a grid of one step as a bar per layer, from a little below the smallest norm."""
    floor = math.floor(low) - 1
    bars: list[Bar] = []
    for row, norm, decades in zip(grid.rows, grid.norm_LT[:, 0], grid.decades_LT[:, 0], strict=True):
        kind = "none" if not math.isfinite(norm) or norm < 0 else "zero" if norm == 0 else "some"
        frac = 0.0 if np.isnan(decades) else (float(decades) - floor) / max(high - floor, 1e-9)
        bars.append(Bar(row=_clean.name(row), text=number(float(norm)), kind=kind, frac=round(frac, 4)))
    return tuple(bars)


def _height(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _strokes(line: Line, place: Callable[[int, float], tuple[float, float]]) -> tuple[str, ...]:
    strokes: list[list[str]] = [[]]
    for step, value in zip(line.steps, line.values, strict=True):
        if value is None:
            strokes.append([])
        else:
            strokes[-1].append("{},{}".format(*place(step, value)))
    return tuple(" ".join(points) for points in strokes if len(points) > 1)
