"""Figures as plotly's dictionaries: names are text there too, and no number is NaN."""

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from evengrad.report import _clean
from evengrad.report._colours import BAD, ZERO, scale
from evengrad.report._grid import Grid
from evengrad.report._labels import short_labels
from evengrad.report._lines import Line, logarithmic

Figure = dict[str, Any]

_MOST_TICKS = 24


def plain(text: str, most: int = 60) -> str:
    """Make a name safe for plotly, which draws `<b>` bold and `<a href>` as a link.

    Example:
        >>> plain("<b>fc</b>&co")
        '&lt;b&gt;fc&lt;/b&gt;&amp;co'
    """
    return html.escape(_clean.tick(text, most), quote=False)


def heat_map_figure(grid: Grid, low: float, high: float) -> Figure:
    """Draw the logarithm of a grid; zeros and non-finite cells are layers of their own."""
    rows = _unique([plain(row) for row in grid.rows])
    numbers = [[None if np.isnan(cell) else round(cell, 2) for cell in row] for row in grid.decades_LT.tolist()]
    more = f" (largest of {grid.steps_each})" if grid.steps_each > 1 else ""
    place = "%{y}<br>" + plain(grid.column_axis) + " %{x}" + more
    common: Figure = {"type": "heatmap", "x": list(grid.steps), "y": rows, "hoverongaps": False}
    traces: list[Figure] = [
        common
        | {
            "z": numbers,
            "zmin": low,
            "zmax": high,
            "colorscale": scale(),
            "colorbar": _colour_bar(low, high),
            "hovertemplate": place + "<br>gradient norm 10<sup>%{z:.2f}</sup><extra></extra>",
        }
    ]
    for mask_LT, colour, words in ((grid.zero_LT, ZERO, "exactly zero"), (grid.bad_LT, BAD, "not finite")):
        if mask_LT.any():
            traces.append(
                common
                | {
                    "z": [[1 if cell else None for cell in row] for row in mask_LT.tolist()],
                    "colorscale": [[0, colour], [1, colour]],
                    "showscale": False,
                    "hovertemplate": place + f"<br>{words}<extra></extra>",
                }
            )
    return {"data": traces, "layout": _heat_map_layout(grid, rows)}


def loss_figure(lines: Sequence[Line]) -> Figure:
    """Draw loss curves; a cross marks where one stops being finite."""
    traces: list[Figure] = []
    groups: set[str] = set()
    runs = Counter(line.group for line in lines)
    for line in lines:
        shown = line.group not in groups
        groups.add(line.group)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(line.steps) > 1 else "markers",
                "x": list(line.steps),
                "y": [None if value is None else float(f"{value:.5g}") for value in line.values],
                "name": plain(line.label if runs[line.group] == 1 else f"{line.group} ({runs[line.group]} runs)", 40),
                "legendgroup": plain(line.group),
                "showlegend": shown,
                "meta": line.group if line.group in {"before", "after"} else "other",
                "line": {"width": 1.6},
                "text": plain(line.label),
                "hovertemplate": "%{text}<br>step %{x}<br>loss %{y:.4g}<extra></extra>",
            }
        )
    traces += _break_marks(lines)
    kind = "log" if logarithmic(lines) else "linear"
    axis = {"type": kind, "title": {"text": "loss"}, "exponentformat": "power", "zeroline": False, "automargin": True}
    if kind == "log":
        axis |= {"tickfont": {"size": 10}}  # plotly draws powers a quarter larger
    return {
        "data": traces,
        "layout": {
            "height": 380,
            "margin": {"l": 56, "r": 12, "t": 34, "b": 44},
            "xaxis": {"title": {"text": "step"}, "zeroline": False},
            "yaxis": axis | ({"dtick": 1} if kind == "log" and _few_decades(lines) else {}),
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
        },
    }


def _few_decades(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.values if value is not None]
    return float(np.log10(max(values)) - np.log10(min(values))) <= 12


def _break_marks(lines: Sequence[Line]) -> list[Figure]:
    marks = [(step, last, what, line.label) for line in lines for step, last, what in line.breaks]
    if not marks:
        return []
    known = [value for line in lines for value in line.values if value is not None]
    fallback = max(known, default=1.0)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [step for step, *_ in marks],
            "y": [fallback if last is None else float(f"{last:.5g}") for _, last, *_ in marks],
            "text": [f"{plain(label, 40)}<br>loss becomes {what} at step {step}" for step, _, what, label in marks],
            "hovertemplate": "%{text}<extra></extra>",
            "name": "stops being finite",
            "meta": "break",
            "marker": {"symbol": "x", "size": 9, "color": BAD},
        }
    ]


def _heat_map_layout(grid: Grid, rows: list[str]) -> Figure:
    each = max(1, -(-len(rows) // _MOST_TICKS))
    places = list(range(0, len(rows), each))
    labels, _ = short_labels(grid.rows)
    return {
        "height": min(780, max(230, 90 + 18 * len(rows))),
        "margin": {"l": 10, "r": 10, "t": 34, "b": 44},
        "xaxis": {"title": {"text": plain(grid.column_axis)}, "showgrid": False, "zeroline": False, "tickformat": "d"}
        | ({"tickvals": list(grid.steps)} if len(grid.steps) <= 12 else {}),
        "yaxis": {
            "type": "category",
            "autorange": "reversed",
            "automargin": True,
            "showgrid": False,
            "tickvals": [rows[place] for place in places],  # by name: plotly takes a number for a name like "2"
            "ticktext": [plain(labels[place], 30) for place in places],
        },
        "meta": {"narrow_ticktext": [plain(labels[place], 13) for place in places]},
    }


def _colour_bar(low: float, high: float) -> Figure:
    first, last = int(np.ceil(low)), int(np.floor(high))
    each = max(1, -(-(last - first) // 8))
    ticks = list(range(first, last + 1, each))
    return {
        "thickness": 12,
        "outlinewidth": 0,
        "ypad": 0,
        "tickvals": ticks,
        "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks],
    }


def _unique(names: list[str]) -> list[str]:
    """Number names that are alike: plotly would fold their rows into one."""
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        shown = name if seen[name] == 1 else f"{name} ({seen[name]})"
        while shown in seen and seen[name] > 1:
            seen[name] += 1
            shown = f"{name} ({seen[name]})"
        seen.setdefault(shown, 1)
        unique.append(shown)
    return unique
