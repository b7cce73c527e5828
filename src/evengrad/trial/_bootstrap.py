"""How sure a mean is, from the few numbers that it is made of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from statistics import mean

COVERAGE = 0.95
MOST_LISTED = 6  # numbers whose resamples are all listed: 6^6 = 46,656
DRAWN = 10_000


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap the mean: the middle 95 % of the means of resamples, drawn with replacement.

    Up to six numbers all resamples are listed, so that nothing is drawn at random; more are resampled 10,000 times
    from a fixed seed. With three numbers the interval nearly spans them all, and covers the true mean less often than
    95 % of the time: it is the least that can be said, and no substitute for more seeds.

    Args:
        values: At least one finite number.

    Returns:
        Lower and upper end.

    Example:
        >>> interval_of_mean([1.0, 1.0]), interval_of_mean([0.0, 3.0])
        ((1.0, 1.0), (0.0, 3.0))

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile interval).
    """
    if len(values) <= MOST_LISTED:
        resamples: list[Sequence[float]] = sorted(product(values, repeat=len(values)), key=sum)
    else:
        draw = random.Random(0)
        resamples = sorted((draw.choices(values, k=len(values)) for _ in range(DRAWN)), key=sum)
    tail = (1 - COVERAGE) / 2
    first = min(len(resamples) - 1, int(tail * len(resamples)))
    return mean(resamples[first]), mean(resamples[len(resamples) - 1 - first])
