"""How far candidates train before they are compared, and how many get there."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

MOST_SINGLES = 8
MOST_COMBINED = 4
# Candidates train for a sixteenth of the steps, the best four of them for a quarter, the best two for half, on two
# seeds: together three trainings.
PARTS = (1 / 16, 1 / 4, 1 / 2)
PLACES = (MOST_SINGLES + MOST_COMBINED, 4, 2)
ALLOWANCE = 3.0
# Fewer steps show nothing: optimizers with moments have not even seen a few gradients.
FEWEST_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Rungs:
    """Lengths in optimizer steps, ascending, and how many candidates train for each.

    Example:
        >>> rungs_of(1600)
        Rungs(lengths=(100, 400, 800), places=(12, 4, 2))
    """

    lengths: tuple[int, int, int]
    places: tuple[int, int, int]

    @property
    def most_steps(self) -> int:
        """Optimizer steps where every place is taken; each candidate goes on where it stopped."""
        return cost(self.lengths, self.places)


def rungs_of(steps: int, allowance: int | None = None) -> Rungs:
    """Lay out the rungs of a search.

    Where the first rung cannot be short enough for all, because so few steps show nothing, fewer candidates start,
    those of the highest rank; never fewer than two, or than one where the allowance is the caller's.

    Args:
        steps: Of a whole training.
        allowance: Most optimizer steps of all candidates together; None for three trainings.
    """
    shortest = min(steps, FEWEST_STEPS)
    lengths = tuple(min(steps, max(shortest, ceil(part * steps))) for part in PARTS)
    most = ceil(ALLOWANCE * steps) if allowance is None else allowance
    least = 2 if allowance is None else 1
    for first in range(PLACES[0], least, -1):
        places = (first, min(PLACES[1], first), min(PLACES[2], first))
        if cost(lengths, places) <= most:
            return Rungs(lengths=_three(lengths), places=places)
    return Rungs(lengths=_three(lengths), places=(least, least, min(least, PLACES[2])))


def cost(lengths: tuple[int, ...], places: tuple[int, ...]) -> int:
    """Count the optimizer steps of all rungs, the last on two seeds."""
    before = (0, *lengths)
    on_another_seed = places[-1] * lengths[-1] if places[-1] > 1 else 0
    ways = (length - start for length, start in zip(lengths, before, strict=False))
    return on_another_seed + sum(count * way for count, way in zip(places, ways, strict=False))


def _three(lengths: tuple[int, ...]) -> tuple[int, int, int]:
    first, second, third = lengths
    return first, second, third
