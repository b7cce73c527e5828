"""A sweep in the terminal: the curve of each policy as bars, in the order of its number."""

from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evengrad.nouns import Sweep
from evengrad.report._blocks import bar
from evengrad.report._breaking import Breaking
from evengrad.report._sweep import HEADS, SweepGroup, groups_of, settings_left_out

_BAR = 9
_SHOWN = {
    "metric": "metric",
    "confirmed, min to max": "other seeds",
    "clipped": "clipped",
    "mean scale": "scale",
    "let through": "let through",
    "spikes": "spikes",
    "not finite": "NaN",
    "ended": "ended early",
}


def sweep_parts(sweep: Sweep) -> Iterable[RenderableType]:
    """Draw a sweep: the longer the bar, the better the metric."""
    for group in groups_of(sweep):
        yield Text(f"{group.name}{f', {group.range}' if group.range else ''}", style="bold")
        if group.rows:
            yield _table(group)
    if left_out := settings_left_out(sweep):
        yield Text(f"{left_out} more settings are not shown here.", style="dim")


def _table(group: SweepGroup) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1), pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("setting", overflow="fold")
    table.add_column("", no_wrap=True, min_width=_BAR)
    places = [HEADS.index(head) - 1 for head in _SHOWN]
    for head in _SHOWN.values():
        last = head == "ended early"
        table.add_column(head, justify="left" if last else "right", overflow="fold", no_wrap=not last)
    for row in group.rows:
        drawn = "" if row.frac is None else bar(max(row.frac, 1 / 16), full_decades=1.0, width=_BAR)
        cells = [row.cells[place] for place in places]
        label = f"{row.short} *" if row.recommended else row.short
        style = "bold green" if row.recommended else ""
        table.add_row(Breaking(label), *map(Text, (drawn, *cells[:-1])), Breaking(cells[-1]), style=style)
    return table
