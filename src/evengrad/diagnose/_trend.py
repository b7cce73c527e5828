"""How the loss of a run goes: robust numbers of its start, its end and its noise, which rules about loss share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, isfinite, sqrt
from statistics import fmean, median

from evengrad.diagnose._constant import Level
from evengrad.diagnose._signal import level_of
from evengrad.nouns import Record, without_last_look

FEWEST_LOSSES = 10
# Windows never hold more than this: what a longer one would add to the precision of a median is below 3 %.
WIDEST_WINDOW = 1000
MOST_RATES = 4096  # a schedule has no more to it
# A rate that was held for less than this share of the run is a slip, and no measure for the others.
HELD_FRAC = 0.02
SLIP = 2.0  # the top of a curve is not so far above its sides
# Steps of a thousandth of the largest ones: a hundred thousand of them go as far as a hundred of those. Schedules that
# come down so far, cosines and polynomials, do so within their last tenth; stairs of ten need three of them.
DEAD_FRAC = 1e-3
DEAD_SHARE = 0.5
# A median of n normal numbers scatters by sqrt(pi / 2) of what their mean does; a normal number's median absolute
# deviation is its standard deviation over 1.4826, and the difference of two has sqrt(2) of it.
OF_A_MEDIAN = 1.2533
FROM_MAD = 1.4826
# Two medians differ when they are this many standard errors apart: a chance of 6e-5 for white noise, and still one in
# a hundred where neighbouring losses are so alike that only a third of them count.
SIGNIFICANT_SIGMAS = 4.0
ROUNDING = 2.0**-23


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """The course of the loss, in numbers that a few outliers cannot move.

    Args:
        count: Losses that are known and finite.
        first_step: Step of the first of them.
        last_step: Step of the last.
        steps: How many optimizer steps they stand for: the loss of a look at the model after the last step is none.
        start: Median of the first 3 % (five losses at least, so that it stands for the untrained model).
        end: Median of the last 15 %.
        best: Lowest median of a hundredth of the run (five losses at least).
        start_noise: Standard deviation of a single loss around its neighbours in the first quarter.
        end_noise: The same in the last quarter.
        fall_sigmas: By how many standard errors the end lies below the start; negative where it lies above. The
            larger one of two comparisons: start with end, first quarter with last quarter.
        late_fall: How far the loss came down within the last third, from the median of its first half to the second.
        late_sigmas: The same in standard errors.
        swing: Standard deviation of the losses in the last quarter around their median, slow waves and all.
        period_two: Correlation of a change of the loss with the change two steps later, in the last quarter: 0 for
            noise of batches around any slow course, near 1 where every second step goes up again, as in a descent whose
            steps are too long.
        finite: Whether every loss that was told is finite.
        first_bad_step: Step of the first one that is not.
        last_finite: Whether the last loss that was told is.
        full_steps: How many steps at the largest learning rate (that was held for a fiftieth of the run) all steps
            together amount to; the number of steps where no rate is known.
        warming_up: Whether the learning rate is still rising at the end.
        rate_died: Step from which on the learning rate is below a thousandth of its largest, if that is for more than
            half of the run; the first step if it was 0 all the time.
        level: The loss relative to that of the best constant prediction, in the second half of the run; None where
            nothing is known of it. See `level_of`.
    """

    count: int
    first_step: int
    last_step: int
    steps: int
    start: float
    end: float
    best: float
    start_noise: float
    end_noise: float
    fall_sigmas: float
    late_fall: float
    late_sigmas: float
    swing: float
    period_two: float
    finite: bool
    first_bad_step: int | None
    last_finite: bool
    full_steps: float
    warming_up: bool
    rate_died: int | None
    level: Level | None

    @property
    def span(self) -> int:
        """How many step numbers the losses reach over, that of a look after the last step as well."""
        return self.last_step - self.first_step + 1

    @property
    def from_start(self) -> bool:
        """Whether the first loss is that of the untrained model."""
        return self.first_step == 0

    @property
    def fell(self) -> bool:
        """Whether the end is below the start beyond what noise can do."""
        return self.fall_sigmas >= SIGNIFICANT_SIGMAS

    @property
    def rose(self) -> bool:
        """Whether the end is above the start beyond what noise can do."""
        return self.fall_sigmas <= -SIGNIFICANT_SIGMAS

    @property
    def still_falling(self) -> bool:
        """Whether the loss came down within the last third beyond what noise can do."""
        return self.late_sigmas >= SIGNIFICANT_SIGMAS

    @property
    def late_error(self) -> float:
        """Standard error of the late fall."""
        return self.late_fall / self.late_sigmas if self.late_sigmas not in {0.0, inf, -inf} else 0.0

    @property
    def rising(self) -> bool:
        """Whether the loss went up within the last third beyond what noise can do."""
        return self.late_sigmas <= -SIGNIFICANT_SIGMAS

    @property
    def relative_to_constant(self) -> float | None:
        """The loss over that of the best constant prediction; None where nothing is known of it."""
        return None if self.level is None else self.level.ratio

    @property
    def fallen_frac(self) -> float:
        """Share of the larger magnitude of start and end by which the loss fell; negative where it rose.

        It does not change with the unit of the loss, and has a meaning for negative losses too.
        """
        scale = max(abs(self.start), abs(self.end))
        return (self.start - self.end) / scale if scale > 0.0 else 0.0


def losses_of(record: Record) -> list[tuple[int, float]]:
    """List step and loss where the loss is known, whether finite or not."""
    return [(reading.step, reading.loss) for reading in record.readings if reading.loss is not None]


def trend_of(record: Record) -> Trend | None:
    """Describe the course of the loss; None where fewer than ten finite losses are known."""
    told = losses_of(record)
    finite = [(step, loss) for step, loss in told if isfinite(loss)]
    if len(finite) < FEWEST_LOSSES:
        return None
    losses = [loss for _, loss in finite]
    quarter = max(len(losses) // 4, 5)
    head, tail = losses[: _share(losses, 0.03)], losses[-_share(losses, 0.15) :]
    first, last = losses[:quarter], losses[-quarter:]
    third = losses[-max(len(losses) // 3, 8) :]
    late_fall, late_sigmas = _compared(third[: len(third) // 2], third[len(third) // 2 :])
    falls = (_compared(head, tail)[1], _compared(first, last)[1])
    bad = next((step for step, loss in told if not isfinite(loss)), None)
    rates = _rates_of(record)
    full_steps, warming_up = _full_steps(rates, record.readings[-1].step - record.readings[0].step + 1)
    return Trend(
        count=len(losses),
        first_step=finite[0][0],
        last_step=finite[-1][0],
        steps=min(finite[-1][0], without_last_look(record.readings)[-1].step) - finite[0][0] + 1,
        start=median(_thinned(head)),
        end=median(_thinned(tail)),
        best=_lowest(losses),
        start_noise=noise_of(first[:WIDEST_WINDOW]),
        end_noise=noise_of(last[-WIDEST_WINDOW:]),
        fall_sigmas=max(falls, key=abs),
        late_fall=late_fall,
        late_sigmas=late_sigmas,
        swing=_spread(_thinned(last)),
        period_two=_period_two(last[-WIDEST_WINDOW:]),
        finite=bad is None,
        first_bad_step=bad,
        last_finite=isfinite(told[-1][1]),
        full_steps=full_steps,
        warming_up=warming_up,
        rate_died=_died_at(rates),
        level=level_of(record),
    )


def noise_of(losses: Sequence[float]) -> float:
    """Estimate the standard deviation of a loss around its neighbours, whatever slow course they follow.

    Example:
        >>> noise_of([1.0, 2.0, 3.0, 4.0, 5.0]) < 1.1
        True
    """
    steps = [after - before for before, after in itertools.pairwise(losses)]
    if len(steps) < 2:
        return 0.0
    return FROM_MAD * median(abs(step) for step in steps) / sqrt(2.0)


def _share(losses: Sequence[float], frac: float) -> int:
    return max(5, int(frac * len(losses)))


def _thinned(losses: Sequence[float]) -> Sequence[float]:
    """Take every k-th loss of a long window, with k odd: no pattern of two may be thinned to one side."""
    return losses[:: (len(losses) // WIDEST_WINDOW) | 1] if len(losses) > WIDEST_WINDOW else losses


def _spread(losses: Sequence[float]) -> float:
    middle = median(losses)
    return FROM_MAD * median(abs(loss - middle) for loss in losses)


def _compared(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """How far the median comes down from one window to the next, and that in standard errors.

    The error of a median is that of noise, from differences of neighbours: a course that goes down within a window is
    no noise. Where there is none at all (a fixed batch), what float32 resolves is taken.
    """
    one, two = median(_thinned(before)), median(_thinned(after))
    errors = [
        OF_A_MEDIAN * max(noise_of(window[:WIDEST_WINDOW]), ROUNDING * abs(middle)) / sqrt(min(len(window), 4000))
        for window, middle in ((before, one), (after, two))
    ]
    error = hypot(*errors)
    fall = one - two
    if error == 0.0:
        return fall, 0.0 if fall == 0.0 else inf if fall > 0.0 else -inf
    return fall, fall / error


def _lowest(losses: Sequence[float]) -> float:
    width = max(5, len(losses) // 100)
    blocks = [losses[at : at + width] for at in range(0, len(losses) - width + 1, width)]
    return min(median(_thinned(block)) for block in blocks)


def _period_two(losses: Sequence[float]) -> float:
    """Correlate each change with the one two steps later; changes beyond four of their spreads count as four."""
    steps = [after - before for before, after in itertools.pairwise(losses)]
    if len(steps) < 8:
        return 0.0
    most = 4.0 * FROM_MAD * median(abs(step) for step in steps)
    steps = [max(-most, min(most, step)) for step in steps]
    power = sum(step * step for step in steps[:-2]) + sum(step * step for step in steps[2:])
    return 2.0 * sum(one * two for one, two in zip(steps, steps[2:], strict=False)) / power if power > 0.0 else 0.0


def _rates_of(record: Record) -> list[tuple[int, float]]:
    """List step and learning rate, the largest of all groups, where it is known."""
    seen = record.readings[:: len(record.readings) // MOST_RATES + 1]
    known = [(reading.step, max(reading.lrs)) for reading in seen if reading.lrs]
    return [(step, rate) for step, rate in known if isfinite(rate)]


def _full_steps(rates: Sequence[tuple[int, float]], steps: int) -> tuple[float, bool]:
    """Sum the learning rates in units of the largest one, and tell whether the rate is still rising at the end."""
    known = [rate for _, rate in rates]
    ordered = sorted(known, reverse=True) or [0.0]
    held = ordered[int(HELD_FRAC * len(known))]
    peak = ordered[0] if ordered[0] <= SLIP * held else held
    if peak <= 0.0:
        return float(steps), False
    before = known[-1 - len(known) // 10]
    return steps * fmean(min(rate / peak, 1.0) for rate in known), known[-1] >= peak and before < (1.0 - 1e-6) * peak


def _died_at(rates: Sequence[tuple[int, float]]) -> int | None:
    """Find the step from which on the rate is next to nothing to the end, for more than half of the run."""
    peak = max((rate for _, rate in rates), default=1.0)
    dead = list(itertools.takewhile(lambda one: one[1] < DEAD_FRAC * peak or one[1] == 0.0, reversed(rates)))
    return dead[-1][0] if len(dead) > DEAD_SHARE * len(rates) else None
