"""Loss curves: pooled to a size that a page can hold, with the places where they stop being finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from evengrad.nouns import Curve, SettingError
from evengrad.report import _clean
from evengrad.report._words import finite

MOST_CURVES = 60
MOST_POINTS = 1500


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve, ready to be drawn.

    Args:
        label: As in the legend.
        group: `before`, `after`, or another word.
        steps: Horizontal positions.
        values: Vertical positions; None where not finite.
        breaks: Where a stretch of non-finite values begins: the step, the last finite value, and what came.
        full: The values before they were pooled.
        full_steps: Their steps.
    """

    label: str
    group: str
    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    breaks: tuple[tuple[int, float | None, str], ...]
    full: tuple[float, ...]
    full_steps: tuple[int, ...]


def lines_of(curves: Sequence[Curve]) -> list[Line]:
    """Take the first curves that have values; without a curve after, none is called one before."""
    lines = [line_of(curve) for curve in curves[:MOST_CURVES] if curve.steps or curve.values]
    if {line.group for line in lines} == {"before"}:
        return [replace(line, group="run") for line in lines]
    return lines


def line_of(curve: Curve, *, most: int = MOST_POINTS) -> Line:
    """Check a curve, mark where it breaks, and thin it.

    Raises:
        SettingError: There is not one value per step.
    """
    if len(curve.steps) != len(curve.values):
        raise SettingError("Curve.values", came=f"{len(curve.values)} values", wanted=f"{len(curve.steps)}, one a step")
    points = thinned(curve.values, most=most)
    return Line(
        label=_clean.name(curve.label),
        group=_clean.name(curve.group),
        steps=tuple(curve.steps[at] for at in points),
        values=tuple(curve.values[at] if math.isfinite(curve.values[at]) else None for at in points),
        breaks=_breaks(curve),
        full=curve.values,
        full_steps=curve.steps,
    )


def thinned(values: Sequence[float], *, most: int) -> list[int]:
    """Choose positions: of each block its smallest, its largest and its first non-finite value.

    Example:
        >>> thinned([0.0, 9.0, 1.0, 2.0, 3.0, 4.0], most=4)
        [0, 1, 3, 5]
    """
    if len(values) <= most:
        return list(range(len(values)))
    each = -(-len(values) // max(1, most // 2))
    kept: set[int] = {0, len(values) - 1}
    for start in range(0, len(values), each):
        block = range(start, min(start + each, len(values)))
        good = [at for at in block if math.isfinite(values[at])]
        kept |= {min(good, key=values.__getitem__), max(good, key=values.__getitem__)} if good else set()
        kept |= set([at for at in block if not math.isfinite(values[at])][:1])
    return sorted(kept)


def logarithmic(lines: Sequence[Line]) -> bool:
    """Tell whether a logarithmic axis shows more: all values positive, and more than two decades between them."""
    values = finite([value for line in lines for value in line.values])
    return bool(values) and min(values) > 0 and math.log10(max(values)) - math.log10(min(values)) > 2


def _breaks(curve: Curve) -> tuple[tuple[int, float | None, str], ...]:
    found: list[tuple[int, float | None, str]] = []
    last: float | None = None
    was_good = True
    for step, value in zip(curve.steps, curve.values, strict=True):
        good = math.isfinite(value)
        if was_good and not good:
            found.append((step, last, "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"))
        last = value if good else last
        was_good = good
    return tuple(found[:20])  # a curve that flickers would cover itself with marks
