"""Turn a story into one HTML file that needs nothing but itself."""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, StrictUndefined

from evengrad.nouns import HeatMap, SettingError, Story
from evengrad.report import _clean
from evengrad.report._cards import MOST_FINDINGS, cards_of
from evengrad.report._colours import BAD, CIVIDIS, ZERO
from evengrad.report._figures import Figure, heat_map_figure, loss_figure
from evengrad.report._grid import Grid, grid_of, pooled, scale_of, scales_of
from evengrad.report._headline import badge, tiles
from evengrad.report._labels import short_labels
from evengrad.report._lines import MOST_CURVES, Line, lines_of
from evengrad.report._results import MOST_TRIALS, proof_of, spread_rows, trial_rows
from evengrad.report._static import Bar, Chart, Picture, bars_of, chart_of, picture_of, spark
from evengrad.report._sweep import HEADS, groups_of, settings_left_out
from evengrad.report._sweep_figure import Plot, Still, plots_of, still_of, sweep_figure
from evengrad.report._tables import Table, heat_map_table, loss_table
from evengrad.report._target import check_target, write_whole

MOST_HEAT_MAPS = 12
_MOST_LINES = 500  # changes, facts, notes


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Heat:
    title: str
    caption: str
    table: Table
    picture: Picture | None
    bars: tuple[Bar, ...]
    figure: int | None
    column_axis: str
    low: float
    high: float
    has_zero: bool
    has_bad: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Loss:
    chart: Chart
    table: Table
    figure: int
    groups: tuple[str, ...]
    has_breaks: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Swept:
    plot: Plot
    still: Still
    figure: int


def page(*stories: Story, title: str = "") -> str:
    """Write one or several stories as one HTML page that opens offline.

    The page asks the network for nothing and forbids itself to: a content security policy lets run only the two scripts
    inside it, by their hashes. Plots are images first and become interactive when JavaScript is on; the numbers behind
    each plot are a table. Every string of a story is shown as text: markup is escaped, control characters are made
    visible, names longer than 300 characters lose their middle.

    Args:
        stories: What to show. Several become chapters behind a table of contents. At most 200 findings, 1000 trials, 60
            curves and 12 heat maps of each are shown, and the page says how many were left out. A heat map is pooled to
            300 layers by 600 steps by the largest of each block.
        title: The title of a page of several stories.

    Returns:
        The page, about 2 MB where there is a plot (plotly's own script, compressed), about 30 kB where there is none.

    Raises:
        SettingError: A heat map or a curve has not one value per step, or there is no story.

    Cost: About half a second, of which plotly's script takes 0.2 s the first time; a heat map of the full 300 by 600
        adds 0.6 s and 1.3 MB.

    Example:
        >>> html = page(Story(title="a run", headline="No findings in 500 steps"))
        >>> "No findings in 500 steps" in html, "<script src" in html
        (True, False)
    """
    if not stories:
        raise SettingError("stories", came="none", wanted="at least one")
    figures: list[Figure] = []
    chapters = [_chapter(story, figures) for story in stories]
    script, plotly = _text("_page.js"), _plotly() if figures else None
    context: dict[str, Any] = {
        "title": _clean.name(title or stories[0].title),
        "chapters": chapters,
        "spark": spark,
        "policy": _policy([script] + ([plotly[0]] if plotly else [])),
        "style": _text("_page.css"),
        "script": script,
        "plotly": plotly[1] if plotly else "",
        "figures": _json(figures),
        "scale": ", ".join(CIVIDIS),
        "zero_colour": ZERO,
        "bad_colour": BAD,
    }
    return str(_template().render(context))


def _chapter(story: Story, figures: list[Figure]) -> dict[str, Any]:
    """Prepare what the template shows of one story; its plots join those of the page."""
    badge_words, badge_tone = badge(story)
    return _words(story) | {
        "badge_words": _clean.name(badge_words),
        "badge_tone": badge_tone,
        "tiles": tiles(story),
        "cards": cards_of(story.findings),
        "heats": _heats(story.heat_maps[:MOST_HEAT_MAPS], figures),
        "loss": _loss(lines_of(story.curves), figures),
        "proof": proof_of(story.verdict) if story.verdict else None,
        "trials": trial_rows(story.trials),
        "spreads": spread_rows(story.trials),
        "left_out": _left_out(story),
        "swept": _swept(plots_of(story.sweep), figures) if story.sweep is not None else (),
        "sweep_groups": groups_of(story.sweep) if story.sweep is not None else (),
        "sweep_heads": HEADS,
    }


def write(stories: Story | Sequence[Story], path: str | Path, *, title: str = "") -> Path:
    """Write the page of one or several stories to a file, whole or not at all.

    Args:
        stories: What to show.
        path: The file; an old one is replaced and keeps its permissions. A symbolic link stays, and the file that it
            points to is written. The folder must exist.
        title: The title of a page of several stories.

    Returns:
        The path.

    Raises:
        RunLogError: The file cannot be written there, or what is there is a folder, a pipe or a device.
    """
    check_target(path)
    write_whole(page(*([stories] if isinstance(stories, Story) else stories), title=title), path)
    return Path(path)


def _words(story: Story) -> dict[str, Any]:
    return {
        "title": _clean.name(story.title),
        "headline": _clean.sentence(story.headline),
        "notes": [_clean.sentence(note) for note in story.notes[:_MOST_LINES]],
        "changes": [_clean.sentence(change) for change in story.changes[:_MOST_LINES]],
        "facts": [(_clean.name(fact), _clean.sentence(value)) for fact, value in story.facts[:_MOST_LINES]],
        "code": _clean.code(story.code),
        "patch": _clean.code(story.patch),
    }


def _heats(heat_maps: tuple[HeatMap, ...], figures: list[Figure]) -> list[_Heat]:
    grids = [pooled(grid_of(heat_map)) for heat_map in heat_maps]
    grids = [grid for grid in grids if grid.norm_LT.size]
    scales = scales_of(grids)
    return [_heat(grid, scale_of(grid, scales), figures) for grid in grids]


def _heat(grid: Grid, limits: tuple[float, float], figures: list[Figure]) -> _Heat:
    low, high = limits
    single = len(grid.steps) == 1
    if not single:
        figures.append(heat_map_figure(grid, low, high))
    return _Heat(
        title=_clean.name(grid.title),
        caption=_caption(grid),
        table=heat_map_table(grid),
        picture=None if single else picture_of(grid, low, high),
        bars=bars_of(grid, low, high) if single else (),
        figure=None if single else len(figures) - 1,
        column_axis=_clean.name(grid.column_axis),
        low=low,
        high=high,
        has_zero=bool(grid.zero_LT.any()),
        has_bad=bool(grid.bad_LT.any()),
    )


def _caption(grid: Grid) -> str:
    row, column = _clean.name(grid.row_axis), _clean.name(grid.column_axis)
    words = [f"{len(grid.rows)} rows, first {row} at the top; "]
    if len(grid.steps) == 1:
        words.append(f"{column} {grid.steps[0]}; bars on a logarithmic scale.")
    else:
        words.append(f"{column} {grid.steps[0]} to {grid.steps[-1]}; colour is the logarithm of the gradient's size.")
    if grid.rows_each > 1 or grid.steps_each > 1:
        words.append(f" Each cell is the largest of up to {grid.rows_each} ({row}) by {grid.steps_each} ({column}).")
    said = short_labels(grid.rows)[1] if len(grid.steps) > 1 else ""
    return "".join(words) + (f" Not repeated on the axis: {said}." if said else "")


def _loss(lines: list[Line], figures: list[Figure]) -> _Loss | None:
    if not lines:
        return None
    figures.append(loss_figure(lines))
    return _Loss(
        chart=chart_of(lines),
        table=loss_table(lines),
        figure=len(figures) - 1,
        groups=tuple(dict.fromkeys(line.group for line in lines)),
        has_breaks=any(line.breaks for line in lines),
    )


def _swept(plots: tuple[Plot, ...], figures: list[Figure]) -> tuple[_Swept, ...]:
    shown = []
    for plot in plots:
        figures.append(sweep_figure(plot))
        shown.append(_Swept(plot=plot, still=still_of(plot), figure=len(figures) - 1))
    return tuple(shown)


def _left_out(story: Story) -> dict[str, int]:
    return {
        "findings": max(0, len(story.findings) - MOST_FINDINGS),
        "trials": max(0, len(story.trials) - MOST_TRIALS),
        "curves": max(0, len(story.curves) - MOST_CURVES),
        "heat_maps": max(0, len(story.heat_maps) - MOST_HEAT_MAPS),
        "settings": settings_left_out(story.sweep) if story.sweep is not None else 0,
    }


def _json(figures: list[Figure]) -> str:
    """Write figures so that nothing in them can end the script element: every `<`, `>` and `&` is an escape."""
    text = json.dumps(figures, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _plotly() -> tuple[str, str]:
    """Give plotly's script, and the same compressed as base64."""
    from plotly.offline import get_plotlyjs  # half a second that a page without plots does not need

    source = str(get_plotlyjs())
    return source, base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode()


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    return environment.from_string(_text("_page.html.jinja"))


def _visible(value: object) -> object:
    """Catch control characters once more where a template writes a string."""
    return _clean.with_lines(value) if type(value) is str else value


def _text(name: str) -> str:
    return files("evengrad.report").joinpath(name).read_text(encoding="utf-8")
