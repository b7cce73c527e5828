"""Numbers as the report writes them."""

import math
from collections.abc import Sequence

NOTHING = "–"


def number(value: float | None) -> str:
    """Write a number with four digits.

    Example:
        >>> number(0.91234), number(None), number(float("nan")), number(float("-inf"))
        ('0.9123', '–', 'NaN', '-Inf')
    """
    if value is None:
        return NOTHING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.4g}"


def signed(value: float | None) -> str:
    """Write a difference with its sign.

    Example:
        >>> signed(0.5), signed(-2.0)
        ('+0.5', '-2')
    """
    return ("+" if value is not None and math.isfinite(value) and value > 0 else "") + number(value)


def decades(value: float | None) -> str:
    """Write a size in powers of ten.

    Example:
        >>> decades(7.04)
        '7.0'
    """
    return f"{value:.1f}" if value is not None and math.isfinite(value) else number(value)


def counted(count: int, thing: str) -> str:
    """Write a count with its noun.

    Example:
        >>> counted(1, "finding"), counted(3, "finding")
        ('1 finding', '3 findings')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def finite(values: Sequence[float | None]) -> list[float]:
    """Keep what can be averaged."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float | None]) -> float | None:
    """Average the finite values; None where there are none."""
    kept = finite(values)
    return sum(kept) / len(kept) if kept else None


def spread(values: Sequence[float | None]) -> str:
    """Write the smallest and the largest of several finite values; one value has no spread.

    Example:
        >>> spread([0.9, 0.95, None])
        '0.9 to 0.95'
        >>> spread([0.9])
        '–'
    """
    kept = finite(values)
    return f"{number(min(kept))} to {number(max(kept))}" if len(kept) > 1 else NOTHING
