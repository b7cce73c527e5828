"""Sparing a training a higher learning rate that it does not need: steps times rate is the way that it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from evengrad.nouns import Trial
from evengrad.treat import AbstractTreatment, ScaleLearningRate
from evengrad.trial._candidates import Candidate, akin, parts_of
from evengrad.trial._entrant import Entrant, metric_at
from evengrad.trial._judge import LEAST_GAIN_FRAC, tail_mean

LATE_FRAC = 0.1  # of what a loss came down by


def spared(order: Sequence[Entrant], steps: int, suffices: Callable[[Entrant], bool]) -> list[Entrant]:
    """Put a training before the same one at a higher rate, where that had no more to gain after so many steps less.

    A tenth of the steps at ten times the rate lead about as far as all steps at the rate, which is the safer one for
    the rest of the way; and a quarter of the steps, where they are compared, always favours the higher one.

    Args:
        order: By rank.
        steps: Of a whole training.
        suffices: Tells whether one learns and has no finding.
    """
    found = list(order)
    for fast in order:
        slow = next((one for one in order if suffices(one) and reaches(one, fast, steps)), None)
        if slow is not None and found.index(slow) > found.index(fast):
            found.remove(slow)
            found.insert(found.index(fast), slow)
    return found


def reaches(slow: Entrant, fast: Entrant, steps: int) -> bool:
    """Tell whether a training comes as far by its end as the same one at a higher rate has come, on each seed."""
    factor = factor_between(slow.treatment, fast.treatment)
    trials = fast.apart or ((fast.trial,) if fast.trial is not None else ())
    return factor > 1.0 and bool(trials) and all(settled(trial, int(steps / factor)) for trial in trials)


def settled(trial: Trial, step: int) -> bool:
    """Tell whether a trial had gained all it has by a step: its metric, and nine tenths of what its loss came down.

    A metric of few samples stands still while its loss comes down, and a loss comes down for ever where the metric is
    at its best.
    """
    then, now = metric_at(trial, step), metric_at(trial, trial.steps)
    if step >= trial.steps or then is None or now is None or now - then > LEAST_GAIN_FRAC * abs(now):
        return False
    start, before, end = (tail_mean(trial.losses[:at]) for at in (1, step, trial.steps))
    return before - end <= LATE_FRAC * max(start - end, 0.0)


def factor_between(one: AbstractTreatment, other: AbstractTreatment) -> float:
    """Say how many times the learning rate of one the other's is, where they differ in nothing else; else 0."""
    rates, rests = [], []
    for treatment in (one, other):
        parts = parts_of(treatment)
        rates.append(prod(part.factor for part in parts if isinstance(part, ScaleLearningRate)))
        rests.append({part.label for part in parts if not isinstance(part, ScaleLearningRate)})
    return rates[1] / rates[0] if rests[0] == rests[1] else 0.0


def tried_with(finalist: Candidate, other: Candidate) -> bool:
    """Tell whether the proof of one says all of the other: a part of it, but not the same at a lower learning rate."""
    alike = akin(finalist.treatment, other.treatment)
    return alike and factor_between(other.treatment, finalist.treatment) <= 1.0
