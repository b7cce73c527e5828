"""Several losses in one run, that take turns: each is judged by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from statistics import fmean

from evengrad.diagnose._abstract import Sign
from evengrad.diagnose._ends import sampled
from evengrad.nouns import Record

PERIODS = (4, 3, 2)
FEWEST_PERIODS = 4  # in a quarter of the run
# Of the variance around a smooth course: more than all else together.
EXPLAINED_FRAC = 0.5
# Losses that are nearer to each other may be one: a step that is too long makes it alternate, ever more.
APART_FRAC = 0.05
MOST_LOSSES = 1024  # of a quarter that are looked at


def of_all(judge: Callable[[Record], Sign | None], record: Record) -> Sign | None:
    """Judge each loss of a run by itself; a fault of the run shows in all of them.

    None where they cannot be told apart, or one of them cannot be judged.
    """
    signs = [judge(part) for part in streams(record)]
    known = [sign for sign in signs if sign is not None]
    if not known or len(known) < len(signs):
        return None
    return next((sign for sign in known if not sign.speaks), known[-1])


def streams(record: Record) -> tuple[Record, ...]:
    """Part a run into its losses: the whole where it has one; nothing where several forms come in no order."""
    turns = turns_of(record)
    readings = record.readings
    if turns == 1:
        parts: tuple[Record, ...] = (record,)
    else:
        rests = (tuple(one for one in readings if one.step % turns == rest) for rest in range(turns))
        parts = tuple(replace(record, readings=rest) for rest in rests)
    return parts if all(_is_one(part) for part in parts) else ()


def turns_of(record: Record) -> int:
    """After how many steps the losses begin anew, at the start of the run and at its end; 1 where they do not.

    A step that is too long makes a loss alternate too, but not from the start, nor to the end in the same order.
    """
    told = [(one.step, one.loss) for one in record.readings if one.loss is not None and isfinite(one.loss)]
    quarter = len(told) // 4
    first, last = told[:quarter][:MOST_LOSSES], told[-quarter:][-MOST_LOSSES:] if quarter else []
    for period in PERIODS:
        if quarter < FEWEST_PERIODS * period:
            continue
        shares = [_by_turn(part, period) for part in (first, last)]
        alike = sum(one * two for one, two in zip(*shares, strict=True))
        if all(any(share) for share in shares) and alike > 0.0:
            return period
    return 1


def _by_turn(told: Sequence[tuple[int, float]], period: int) -> list[float]:
    """Mean distance of each turn from the smooth course of the losses; zeros where turns do not explain the distances.

    The course is the mean over a whole period around each step.
    """
    half = period // 2
    losses = [loss for _, loss in told]
    apart: list[list[float]] = [[] for _ in range(period)]
    for at in range(half, len(losses) - half):
        around = losses[at - half : at + half + 1]
        ends = 0.5 * (around[0] + around[-1]) if period % 2 == 0 else around[0] + around[-1]
        apart[told[at][0] % period].append(losses[at] - (ends + sum(around[1:-1])) / period)
    everything = [one for turn in apart for one in turn]
    if any(len(turn) < 2 for turn in apart):
        return [0.0] * period
    means = [fmean(turn) for turn in apart]
    between = sum(len(turn) * mean**2 for turn, mean in zip(apart, means, strict=True))
    least = APART_FRAC * abs(fmean(losses))
    twice = period == 4 and max(abs(means[0] - means[2]), abs(means[1] - means[3])) < least  # a period of two
    if twice or max(abs(mean) for mean in means) < least:
        return [0.0] * period
    return means if between > EXPLAINED_FRAC * sum(one**2 for one in everything) > 0.0 else [0.0] * period


def _is_one(record: Record) -> bool:
    """Tell whether the graph of the loss is the same at all sampled steps of the second half."""
    if not record.readings:
        return False
    middle = (record.readings[0].step + record.readings[-1].step) / 2
    seen = [reading.ends for reading in sampled(record, middle) if reading.ends is not None]
    forms = {(one.loss_ops, None if one.output is None else len(one.output.shape)) for one in seen if one.loss_ops}
    return len(forms) <= 1
