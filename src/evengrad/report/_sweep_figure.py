"""The final metric against what was swept: as plotly's dictionary, and as an image that needs no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from evengrad.nouns import Sweep, SweepPoint
from evengrad.report import _clean
from evengrad.report._figures import Figure, plain
from evengrad.report._static import HEIGHT, WIDTH, Tick
from evengrad.report._sweep import NONE, confirmed, limits, swept
from evengrad.report._words import finite, number

SERIES = 5  # colours in the style sheet: --s0 to --s4

_SYMBOLS = {"finished": "circle", "pruned": "circle-open", "failed": "x"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A training at its place.

    Args:
        value: What was swept.
        across: Its logarithm, where the axis is logarithmic.
        metric: None where there is none.
        low: Smallest metric on confirming seeds; None without any.
        high: Largest.
        mean: Mean on them.
        point: The training.
        recommended: Whether its setting is the one.
    """

    value: float
    across: float
    metric: float | None
    low: float | None
    high: float | None
    mean: float | None
    point: SweepPoint
    recommended: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """The curve of one policy."""

    name: str
    colour: str
    dots: tuple[Dot, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """All curves over one number.

    Args:
        setting: What was swept.
        logarithmic: Whether its axis is.
        series: One for each policy.
        none: Metric without clipping, on all its seeds; empty where it failed.
        ends: Of the vertical axis, the same for all plots of a sweep.
    """

    setting: str
    logarithmic: bool
    series: tuple[Series, ...]
    none: tuple[float, ...]
    ends: tuple[float, float]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A dot of the image: its place in the image's units, and what it is."""

    x: float
    y: float
    colour: str
    ending: str
    low_y: float | None
    high_y: float | None
    recommended: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Still:
    """The image: lines, dots, labels, and the height of the training without clipping."""

    lines: tuple[tuple[str, str], ...]
    marks: tuple[Mark, ...]
    none_y: float | None
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]


def plots_of(sweep: Sweep) -> tuple[Plot, ...]:
    """Put curves over the same number into one plot, in the order in which they were swept."""
    points = swept(sweep)
    settings: dict[str, list[str]] = {}
    for one in sweep.ranges:
        settings.setdefault(one.setting if one.name not in _beside(points) else one.name, []).append(one.name)
    colours = {name: f"s{at % SERIES}" for at, name in enumerate(one.name for one in sweep.ranges)}
    reached = finite([one.metric for one in sweep.points if one.label == NONE])
    plots = []
    for setting, names in settings.items():
        series = tuple(
            Series(name=_clean.name(name), colour=colours[name], dots=dots)
            for name in names
            if (dots := _dots(sweep, points, name))
        )
        log = next(one.logarithmic for one in sweep.ranges if one.name == names[0])
        if series:
            plots.append(
                Plot(
                    setting=_clean.name(setting), logarithmic=log, series=series, none=tuple(reached), ends=_ends(sweep)
                )
            )
    return tuple(plots)


def sweep_figure(plot: Plot) -> Figure:
    """Draw a plot: filled dots went through, open ones were stopped early, crosses failed; bars span seeds."""
    traces: list[Figure] = []
    for one in plot.series:
        traces += _traces(one, plot.ends)
    everything = [dot for one in plot.series for dot in one.dots]
    if plot.none:
        ends = [min(dot.across for dot in everything), max(dot.across for dot in everything)]
        middle = sum(plot.none) / len(plot.none)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [_back(end, plot.logarithmic) for end in ends],
                "y": [_short(_height(middle, plot.ends))] * 2,
                "name": "no clipping",
                "meta": "soft",
                "line": {"width": 1.4, "dash": "dash"},
                "hovertemplate": f"no clipping<br>metric {number(middle)}<extra></extra>",
            }
        )
    chosen = [dot for dot in everything if dot.recommended]
    if chosen:
        traces.append(_ring(chosen[0], plot.ends))
    kind: Figure = {"type": "log", "exponentformat": "power"} if plot.logarithmic else {"type": "linear"}
    return {
        "data": traces,
        "layout": {
            "height": 360,
            "margin": {"l": 56, "r": 12, "t": 34, "b": 44},
            "xaxis": kind | {"title": {"text": plain(plot.setting)}, "zeroline": False},
            "yaxis": {"title": {"text": "metric"}, "zeroline": False, "automargin": True, "range": _room(plot.ends)},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
        },
    }


def still_of(plot: Plot) -> Still:
    """Draw a plot as an image."""
    everything = [dot for one in plot.series for dot in one.dots]
    low, high = plot.ends
    first, last = min(dot.across for dot in everything), max(dot.across for dot in everything)

    def x(across: float) -> float:
        return round((0.02 + 0.96 * ((across - first) / (last - first) if last > first else 0.5)) * WIDTH, 1)

    def y(height: float | None) -> float:
        up = (_height(height, plot.ends) - low) / (high - low) if high > low else 0.5
        return round((0.03 + 0.94 * (1 - up)) * HEIGHT, 1)

    marks = tuple(
        Mark(
            x=x(dot.across),
            y=y(dot.metric),
            colour=one.colour,
            ending=dot.point.ending,
            low_y=None if dot.low is None else y(dot.low),
            high_y=None if dot.high is None else y(dot.high),
            recommended=dot.recommended,
        )
        for one in plot.series
        for dot in one.dots
    )
    lines = tuple(
        (one.colour, " ".join(f"{x(dot.across)},{y(dot.metric)}" for dot in one.dots if _whole(dot)))
        for one in plot.series
        if sum(_whole(dot) for dot in one.dots) > 1
    )
    middle = (first + last) / 2
    return Still(
        lines=lines,
        marks=marks,
        none_y=y(sum(plot.none) / len(plot.none)) if plot.none else None,
        rows=tuple(Tick(text=f"{value:.3g}", at_frac=y(value) / HEIGHT) for value in dict.fromkeys((high, low))),
        columns=tuple(
            Tick(text=f"{_back(across, plot.logarithmic):.3g}", at_frac=x(across) / WIDTH)
            for across in dict.fromkeys((first, middle, last))
        ),
    )


def _beside(points: Sequence[SweepPoint]) -> set[str]:
    return {name for point in points for name, _ in point.others}


def _dots(sweep: Sweep, points: Sequence[SweepPoint], name: str) -> tuple[Dot, ...]:
    """Place the trainings of a policy, or those in which something else was changed."""
    log = next(one.logarithmic for one in sweep.ranges if one.name == name)
    dots = []
    for point in points:
        value = point.value if point.policy == name else dict(point.others).get(name)
        if value is None or not math.isfinite(value) or (log and value <= 0):
            continue
        again = [one.metric for one in confirmed(sweep, point.label)]
        known = finite(again)
        dots.append(
            Dot(
                value=value,
                across=math.log10(value) if log else value,
                metric=point.metric if point.metric is not None and math.isfinite(point.metric) else None,
                low=min(known, default=None),
                high=max(known, default=None),
                mean=sum(known) / len(known) if known else None,
                point=point,
                recommended=point.label == sweep.recommended,
            )
        )
    return tuple(sorted(dots, key=lambda dot: (dot.across, dot.point.label)))


def _traces(series: Series, ends: tuple[float, float]) -> list[Figure]:
    whole = [dot for dot in series.dots if _whole(dot)]
    common: Figure = {"type": "scatter", "meta": series.colour, "legendgroup": plain(series.name)}
    line = common | {
        "mode": "lines",
        "x": [dot.value for dot in whole],
        "y": [_short(_height(dot.metric, ends)) for dot in whole],
        "hoverinfo": "skip",
        "showlegend": False,
        "line": {"width": 1.2},
    }
    dots = common | {
        "mode": "markers",
        "x": [dot.value for dot in series.dots],
        "y": [_short(_height(dot.metric, ends)) for dot in series.dots],
        "text": [_hover(dot) for dot in series.dots],
        "hovertemplate": "%{text}<extra></extra>",
        "name": plain(series.name, 40),
        "marker": {"size": 9, "symbol": [_symbol(dot, ends) for dot in series.dots]},
    }
    return [line, dots, *_seeds(series, common, ends)]


def _seeds(series: Series, common: Figure, ends: tuple[float, float]) -> list[Figure]:
    again = [dot for dot in series.dots if dot.mean is not None]
    if not again:
        return []
    bars: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": [_short(_height(dot.high, ends) - _height(dot.mean, ends)) for dot in again],
        "arrayminus": [_short(_height(dot.mean, ends) - _height(dot.low, ends)) for dot in again],
        "thickness": 1.6,
        "width": 6,
    }
    return [
        common
        | {
            "mode": "markers",
            "x": [dot.value for dot in again],
            "y": [_short(_height(dot.mean, ends)) for dot in again],
            "error_y": bars,
            "text": [f"{plain(dot.point.label)}<br>mean of confirming seeds {number(dot.mean)}" for dot in again],
            "hovertemplate": "%{text}<extra></extra>",
            "showlegend": False,
            "marker": {"size": 7, "symbol": "diamond"},
        }
    ]


def _ring(dot: Dot, ends: tuple[float, float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [dot.value],
        "y": [_short(_height(dot.metric, ends))],
        "name": "recommended",
        "meta": "good",
        "hoverinfo": "skip",
        "marker": {"size": 18, "symbol": "circle-open", "line": {"width": 2.4}},
    }


def _hover(dot: Dot) -> str:
    read = dot.point.quantities
    words = [
        plain(dot.point.label, 80),
        f"metric {number(dot.metric)}, {dot.point.ending} after {read.steps} steps",
        f"{100 * read.clipped_frac:.0f} % of steps clipped, mean scale {number(read.mean_scale)}",
        f"largest norm {number(read.largest_norm)}, let through {number(read.largest_let_through)}",
    ]
    return "<br>".join(words)


def _symbol(dot: Dot, ends: tuple[float, float]) -> str:
    off = dot.metric is not None and dot.metric < ends[0]
    return "triangle-down" if off else _SYMBOLS.get(dot.point.ending, "circle")


def _whole(dot: Dot) -> bool:
    return dot.point.ending == "finished" and dot.metric is not None


def _ends(sweep: Sweep) -> tuple[float, float]:
    """Give the best metric, and the height of those that failed or are far off: a little below all others."""
    low, high = limits(sweep)
    off = any(point.metric is None or point.metric < low for point in sweep.points)
    return low - (0.06 * ((high - low) or abs(low) or 1.0) if off else 0.0), high


def _height(value: float | None, ends: tuple[float, float]) -> float:
    return ends[0] if value is None or math.isnan(value) else min(max(value, ends[0]), ends[1])


def _room(ends: tuple[float, float]) -> list[float]:
    low, high = ends
    more = 0.06 * ((high - low) or abs(low) or 1.0)
    return [_short(low - more), _short(high + more)]


def _back(across: float, log: bool) -> float:
    return float(f"{10**across if log else across:.5g}")


def _short(value: float | None) -> float:
    return float(f"{0.0 if value is None else value:.5g}")
