"""Text that breaks where a reader would break it, and tables that keep whole words in a narrow terminal."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, final

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.measure import Measurement

# After a space, a comma or a plus, and after a dot unless it is that of a number.
_PIECE = re.compile(r".+?(?:[ ,+]+|(?<!\d)\.|\.(?!\d)|$)", re.DOTALL)
_BETWEEN = 3  # characters between two columns


def pieces(text: str) -> list[str]:
    """Part a text where a line may end; joined they are the text.

    Example:
        >>> pieces("net.layers.0.fc + SetOptimizer(lr=0.01, eps=1e-8)")
        ['net.', 'layers.', '0.', 'fc + ', 'SetOptimizer(lr=0.01, ', 'eps=1e-8)']
    """
    return _PIECE.findall(text)


def broken(text: str, width: int) -> list[str]:
    """Break a text into lines; a piece is broken itself only where it is longer than a line.

    Args:
        text: Of one or several lines.
        width: Cells of a line, one at least.

    Returns:
        The lines: nothing of the text is lost but spaces at their ends.
    """
    lines: list[str] = []
    for whole in text.split("\n"):
        line = ""
        for piece in pieces(whole):
            if line and cell_len(line + piece.rstrip(" ")) > width:
                lines.append(line.rstrip(" "))
                line = ""
            line += piece
            heads, line = _parted(line, width)
            lines += heads
        lines.append(line.rstrip(" "))
    return lines


def _parted(line: str, width: int) -> tuple[list[str], str]:
    """Cut full lines off what may be longer than one; give them, and what is left."""
    heads: list[str] = []
    start, end = 0, len(line.rstrip(" "))
    if cell_len(line[:end]) <= width:  # as most are
        return heads, line
    while (count := _fitting(line, start, end, width)) and (start + count < end or cell_len(line[start:end]) > width):
        heads.append(line[start : start + count])
        start += count
    return heads, line[start:]


def _fitting(text: str, start: int, end: int, width: int) -> int:
    """Count the characters from `start` on that a line holds, one at least where there is any: some take two cells.

    No more is measured than about twice what the line holds, so that a long word costs no more than its length.
    """
    most, left = width, end - start
    while most < left and cell_len(text[start : start + most]) <= width:
        most *= 2  # characters may take no cell at all
    counts = range(1, min(most, left) + 1)
    held = bisect_right(counts, width, key=lambda count: cell_len(text[start : start + count]))
    return max(held, min(left, 1))


def longest_piece(text: str) -> int:
    """Say how narrow a text may be without a break inside of a word."""
    return max((cell_len(piece.rstrip(" ")) for line in text.split("\n") for piece in pieces(line)), default=0)


@final
class Breaking:
    """A text for rich that breaks as `broken` does, in as much width as it is given.

    Args:
        text: Of one or several lines.
        style: Of all of it.
    """

    def __init__(self, text: str, style: StyleType = "") -> None:
        self.text = text
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Break it."""
        for line in broken(self.text, max(1, options.max_width)):
            yield Text(line, style=self.style, no_wrap=True, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how narrow and how wide it may be."""
        whole = Text(self.text).__rich_measure__(console, options)
        return whole._replace(minimum=min(whole.maximum, longest_piece(self.text)))


Row = tuple[Sequence[str], StyleType]


def table_of(heads: Sequence[str], rows: Sequence[Row], width: int) -> Iterable[RenderableType]:
    """Make a table whose words are whole, or where it does not fit, one row under another.

    Args:
        heads: A head that begins with `>` stands over numbers, which are never broken.
        rows: Their cells, and the style of each row.
        width: Characters of a line.
    """
    names = [head.lstrip(">") for head in heads]
    narrowest = [
        max(longest_piece(text) if head[0] != ">" else cell_len(text) for text in (name, *(row[at] for row, _ in rows)))
        for at, (head, name) in enumerate(zip(heads, names, strict=True))
    ]
    if sum(narrowest) + _BETWEEN * (len(heads) - 1) > width:
        yield from _stacked(names, rows)
        return
    made = Table(box=SIMPLE, padding=(0, 1), pad_edge=False, show_edge=False)
    for head, name, least in zip(heads, names, narrowest, strict=True):
        numbers = head[0] == ">"
        made.add_column(Text(name), justify="right" if numbers else "left", no_wrap=numbers, min_width=least)
    for row, style in rows:
        cells = [Text(cell) if head[0] == ">" else Breaking(cell) for head, cell in zip(heads, row, strict=True)]
        made.add_row(*cells, style=style)
    yield made


def _stacked(names: Sequence[str], rows: Sequence[Row]) -> Iterable[RenderableType]:
    """Write the first cell over the others; rows with the same one stand together."""
    before = None
    for row, style in rows:
        first, *rest = row
        if first != before:
            yield Breaking(f"{names[0]} {first}", style)
        before = first
        said = ", ".join(f"{name} {cell}" for name, cell in zip(names[1:], rest, strict=True))
        yield Padding(Breaking(said, style), (0, 0, 0, 2))
