"""At which steps to look inside: often at the start, seldom later, and at once when something moves."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Literal, final

from evengrad.nouns import SettingError

Every = int | Literal["auto"] | None

DENSE_STEPS = 8
STAGES = ((100, 25), (1000, 50))  # up to which step of the run, at every which one
LATER_STEPS = 100
BURST_STEPS = 4
PAUSE_STEPS = 100  # after a burst, before another may begin
RECENT_STEPS = 50
FEWEST_STEPS = 20  # before a range can be spoken of
RENEW_STEPS = 10  # how long a range holds before it is worked out anew
DEVIATIONS = 6.0
# Multiples of the golden ratio, modulo 1, are spread as evenly as can be (Knuth 1973, section 6.4); here in 32 bits.
GOLDEN = 2654435769
WORD = 1 << 32


@final
class Schedule:
    """Choose the steps at which layers, weights and ends are sampled.

    `auto`: each of the first 8 steps, for a wrong initialisation, a cut graph or a forgotten `zero_grad` shows at once
    and a run may not live longer; then one in 25 to step 100, one in 50 to step 1,000, and one in 100 after that. Which
    one of an interval changes from one to the next, the same way in every run: where two losses take turns both are
    sampled. A sampled step takes 1.1 to 1.2 plain ones, and 1.9 where a thousand layers are tiny
    (`benchmarks/probe_cost.py`): 13 of the first 200 steps make these 0.4 to 1.5 % longer (6 %), and later it is 0.1 to
    0.2 % (1 %).

    A burst of 4 steps in a row begins when something moves: a step is skipped, or the loss or the gradient norm leaves
    the range of the last 50 steps. That ends 6 median absolute deviations above the median, of their logarithms (4
    standard deviations of a normal distribution), and at least at twice the median, so that neither a quiet run with
    tiny deviations nor a noisy one counts as moving. 100 steps pass before another burst, so that a run that moves all
    the time is sampled at 4 steps of 104, below 1 % of its time.

    Args:
        every: `auto`; a whole number for every so many steps and nothing else; None for never.

    Raises:
        SettingError: It is none of these.

    Cost: A few comparisons of numbers on the host; a median of 50 numbers at every tenth step.
    """

    def __init__(self, every: object) -> None:
        whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        if every is not None and not whole and not (isinstance(every, str) and every == "auto"):
            raise SettingError("sample_every_steps", came=repr(every), wanted="a whole number from 1, 'auto' or None")
        self.every: Every = every  # type: ignore[assignment]
        self._start = 0
        self._burst = range(0)
        self._ranges = (Range(), Range())

    @property
    def never(self) -> bool:
        """Whether nothing is ever sampled."""
        return self.every is None

    def start(self, step: int) -> None:
        """Begin anew: a run that goes on from a checkpoint is looked at as one that starts."""
        self._start, self._burst, self._ranges = step, range(0), (Range(), Range())

    def wants(self, step: int) -> bool:
        """Whether a coming step is to be sampled."""
        if self.every is None:
            return False
        if self.every != "auto":
            return step % self.every == 0
        age = step - self._start
        if age < DENSE_STEPS or step in self._burst:
            return True
        every = next((every for until, every in STAGES if age < until), LATER_STEPS)
        return age % every == place_in(age // every, every)

    def note(self, *, loss: float | None, norm: float | None, skipped: bool, now: int) -> None:
        """Take in what a step has shown; where the device decides it is known some steps late.

        Args:
            loss: Its loss; None where it is not known.
            norm: Its gradient norm; None where it is not known, or of scaled gradients.
            skipped: Whether it was left out for a fault.
            now: The next step that can be sampled.
        """
        if self.every != "auto":
            return
        left = [range_.left_by(value) for range_, value in zip(self._ranges, (loss, norm), strict=True)]
        if (skipped or any(left)) and now >= self._burst.stop + (PAUSE_STEPS if self._burst else 0):
            self._burst = range(now, now + BURST_STEPS)

    def burst_ends(self, step: int) -> bool:
        """Whether a step was the last of a burst."""
        return len(self._burst) > 0 and step == self._burst.stop - 1


def place_in(interval: int, every: int) -> int:
    """Choose a step of an interval: even shares of all places, and no period of a training that meets only one.

    Args:
        interval: Its number.
        every: How many steps it has.
    """
    return (interval * GOLDEN % WORD) * every // WORD


@final
class Range:
    """Where the last values of a number were, told robustly."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=RECENT_STEPS)
        self._age = 0
        self._most = math.inf

    def left_by(self, value: float | None) -> bool:
        """Whether a value is far above the values before it, or not finite; takes it in."""
        if value is None:
            return False
        if not math.isfinite(value):
            return True
        self._age += 1
        if self._age % RENEW_STEPS == 1 and len(self._values) >= FEWEST_STEPS:
            self._most = most_of(self._values)
        self._values.append(value)
        return value > self._most


def most_of(values: Iterable[float]) -> float:
    """Return where the range of some numbers ends; positive ones are compared by their logarithms."""
    known = list(values)
    middle = median(known)
    if min(known) > 0:
        spread = median([abs(math.log(one) - math.log(middle)) for one in known])
        return middle * max(2.0, math.exp(min(DEVIATIONS * spread, 50.0)))
    spread = median([abs(one - middle) for one in known])
    return middle + max(DEVIATIONS * spread, abs(middle))
