"""Whether the output carries anything of the target, where the loss is too noisy to show that it is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from statistics import median

from evengrad.diagnose._constant import SIGMAS, Level, against_constant
from evengrad.diagnose._ends import DISTANCES, form_of, sampled
from evengrad.nouns import Ends, Reading, Record

# By chance one run in 700 that knows nothing of its target passes this.
SIGNAL_SIGMAS = 3.0
# Outputs that have vanished are a function of the input still: what is below a thousandth of the loss is worth nothing.
LEAST_FRAC = 1e-3
# A network that is not trained carries by chance what it carries at the start: what is learnt at least doubles that.
START_STEPS = 8
START_FRAC = 0.5


def level_of(record: Record) -> Level | None:
    """Divide the loss by that of the best constant prediction, and tell whether the output carries any of the target.

    See `against_constant`, and `Ends.signal` for the test.
    """
    level = against_constant(record)
    return None if level is None else replace(level, carries=carries(record, level))


def carries(record: Record, level: Level) -> bool:
    """Tell whether something has been learnt of the target, pooled over the sampled batches of the second half.

    The score test has twice the power of the loss itself, since it does not bear the noise of the output's own size:
    so it says nothing of an output that is too large, and counts only where the loss is not surely above a constant's.
    """
    middle = (record.readings[0].step + record.readings[-1].step) / 2
    late = _known(sampled(record, middle))
    if not late or level.ratio - SIGMAS * level.error > 1.0:
        return False
    signal, error = _pooled(late)
    if signal <= SIGNAL_SIGMAS * error or signal < LEAST_FRAC * median(_scale(ends) for ends in late):
        return False
    first = [one for one in record.readings[:START_STEPS] if one.step < min(START_STEPS, middle)]
    start = _known(first)
    if not start:
        return True
    before, doubt = _pooled(start)
    return before <= SIGNAL_SIGMAS * doubt or before < START_FRAC * signal


def _known(readings: Sequence[Reading]) -> list[Ends]:
    ends = [reading.ends for reading in readings if reading.ends is not None]
    return [one for one in ends if _is_known(one)]


def _is_known(ends: Ends) -> bool:
    if ends.signal is None or ends.signal_error is None or ends.constant_loss is None or ends.target is None:
        return False
    return 0.0 < ends.signal_error < float("inf") and abs(ends.signal) < float("inf")


def _pooled(known: Sequence[Ends]) -> tuple[float, float]:
    """Mean signal, each weighted by its precision, and standard error; errors are measured in the smallest of them."""
    pairs = [(one.signal or 0.0, one.signal_error or 1.0) for one in known]
    least = min(error for _, error in pairs)
    weights = [(least / error) ** 2 for _, error in pairs]
    whole = sum(weights)
    return sum(signal * weight for (signal, _), weight in zip(pairs, weights, strict=True)) / whole, least / sqrt(whole)


def _scale(ends: Ends) -> float:
    """Give what the signal is a share of: the variance of the target for errors, the loss itself for entropies."""
    form = form_of(ends)
    if form is not None and form.name in DISTANCES and ends.target is not None:
        return ends.target.std**2
    return ends.constant_loss or 0.0
