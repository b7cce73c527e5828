"""Numbers as the report writes them."""

import math
from collections.abc import Sequence

NOTHING = "–"
NOT_FINITE = "not finite"


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
    """Write a size in powers of ten: an infinite one stands for what is not finite.

    Example:
        >>> decades(7.04), decades(float("inf")), decades(None)
        ('7.0', 'not finite', '–')
    """
    if value is None or math.isnan(value):
        return number(value)
    return f"{value:.1f}" if math.isfinite(value) else NOT_FINITE


def with_unit(size: str) -> str:
    """Put the unit behind a size that has one.

    Example:
        >>> with_unit(decades(7.04)), with_unit(decades(float("inf")))
        ('7.0 decades', 'not finite')
    """
    return size if size in {NOT_FINITE, NOTHING} else f"{size} decades"


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


def mean_size(sizes: Sequence[float | None]) -> float | None:
    """Average sizes in decades: not finite as soon as one is not, as no number is near that.

    Example:
        >>> mean_size([1.0, None, 3.0]), mean_size([1.0, math.inf])
        (2.0, inf)
    """
    return math.inf if any(size is not None and math.isinf(size) for size in sizes) else mean(sizes)


def size_spread(sizes: Sequence[float | None]) -> str:
    """Write the smallest and the largest of several sizes; one has no spread.

    Example:
        >>> size_spread([1.0, math.inf, None]), size_spread([math.inf, math.inf]), size_spread([1.0])
        ('1.0 to not finite', 'not finite', '–')
    """
    kept = [size for size in sizes if size is not None and not math.isnan(size)]
    if len(kept) < 2:
        return NOTHING
    low, high = decades(min(kept)), decades(max(kept))
    return low if low == high == NOT_FINITE else f"{low} to {high}"
