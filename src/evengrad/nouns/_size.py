"""Sizes of symptoms: what a number of decades stands for where it is no size."""

import math

# As far as float32 spans: what a rule gives a symptom that has no end.
WIDEST_DECADES = 38.5

# Rules that give it for numbers that are not finite, ...
NOT_FINITE = frozenset({"EG104", "EG201", "EG202", "EG203", "EG205"})

# ... and those whose symptom is there or is not, and that give it for being there.
THERE_OR_NOT = frozenset({"EG108", "EG109", "EG110", "EG111"})


def size_of(code: str, decades: float) -> float | None:
    """Give the size of a symptom in decades: infinite where it stands for "not finite", None where it has none.

    Example:
        >>> size_of("EG101", 7.0), size_of("EG201", 38.5), size_of("EG109", 38.5)
        (7.0, inf, None)
    """
    if not decades >= WIDEST_DECADES:
        return decades
    return math.inf if code in NOT_FINITE else None if code in THERE_OR_NOT else decades
