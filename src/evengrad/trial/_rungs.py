"""How far candidates train before they are compared, and how many get there."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

MOST_SINGLES = 8
MOST_COMBINED = 4
MOST_REFINED = 2
# Candidates train for a sixteenth of the steps and the best four of them for a quarter, where the leader may be refined
# twice, and again as often as trainings that failed early or have nothing to show leave steps for it; then those of the
# four that have learnt something train for a quarter on another seed, or two for half and on another: three trainings.
PARTS = (1 / 16, 1 / 4, 1 / 2)
PLACES = (MOST_SINGLES + MOST_COMBINED, 4, 2)
ALLOWANCE = 3.0
# Fewer steps show nothing: optimizers with moments have not even seen a few gradients.
FEWEST_STEPS = 8
FEWEST_FIRST = 6  # candidates: with fewer, refining is given up before candidates are


@dataclass(frozen=True, kw_only=True, slots=True)
class Rungs:
    """Lengths in optimizer steps, ascending, and how many candidates train for each.

    Example:
        >>> rungs_of(1600)
        Rungs(lengths=(100, 400, 800), places=(12, 4, 2), refined=2)
    """

    lengths: tuple[int, int, int]
    places: tuple[int, int, int]
    refined: int

    @property
    def last_steps(self) -> int:
        """Optimizer steps of the end: four on another seed, or two to half of the steps and then there."""
        return _ending(self.lengths, self.places)

    @property
    def most_steps(self) -> int:
        """Optimizer steps where every place is taken; each candidate goes on where it stopped."""
        return cost(self.lengths, self.places, self.refined)


def rungs_of(steps: int, allowance: int | None = None) -> Rungs:
    """Lay out the rungs of a search.

    Where the first rung cannot be short enough for all, because so few steps show nothing, fewer candidates start,
    those of the highest rank; never fewer than two, or than one where the allowance is the caller's.

    Args:
        steps: Of a whole training.
        allowance: Most optimizer steps of all candidates together; None for three trainings.
    """
    shortest = min(steps, FEWEST_STEPS)
    first, second, third = (min(steps, max(shortest, ceil(part * steps))) for part in PARTS)
    lengths = (first, second, third)
    most = floor(ALLOWANCE * steps) if allowance is None else allowance
    least = 2 if allowance is None else 1
    for refined in range(MOST_REFINED, -1, -1):
        for count in range(PLACES[0], FEWEST_FIRST - 1 if refined else least, -1):
            places = (count, min(PLACES[1], count), min(PLACES[2], count))
            if cost(lengths, places, refined) <= most:
                return Rungs(lengths=lengths, places=places, refined=refined)
    return Rungs(lengths=lengths, places=(least, least, min(least, PLACES[2])), refined=0)


def cost(lengths: tuple[int, int, int], places: tuple[int, int, int], refined: int) -> int:
    """Count the optimizer steps of the two rungs, the refinements, and the dearer of the two ways to end."""
    first, second, _ = lengths
    ways = places[0] * first + places[1] * (second - first)
    return ways + refined * second + _ending(lengths, places)


def _ending(lengths: tuple[int, int, int], places: tuple[int, int, int]) -> int:
    _, second, third = lengths
    on_seeds = places[1] * second if places[1] > 1 else 0
    on_length = places[2] * (third - second) + (places[2] * second if places[2] > 1 else 0)
    return max(on_seeds, on_length)
