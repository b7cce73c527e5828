"""How a run stood right before something was not finite: whether it grew until it broke, or came out of nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import isfinite
from statistics import median

from evengrad.diagnose._loss_graph import risks
from evengrad.nouns import Reading, Record

BEFORE = 20
FEWEST_BEFORE = 5
LAST = 3
# What explodes gets there through all the decades between: a norm near 1 that is to be beyond float32 grows by far more
# than ten times a step in its last steps. Batches differ by less than that.
GROWN = 10.0
# Half precision ends at 65504, which a large batch gradient may pass in one step.
NARROW = "float16"
# The smallest number that is not zero: an epsilon below half of it is none.
SMALLEST = {"float16": 5.96e-8, "bfloat16": 9.18e-41, "float32": 1.40e-45, "float64": 4.94e-324}


def before(reading: Reading, record: Record, most: int = BEFORE) -> Sequence[Reading]:
    """List the readings right before one, the latest last; of a record in the order of its steps.

    Cost: O(log n) in the readings.
    """
    at = bisect_left(record.readings, reading.step, key=lambda one: one.step)
    return record.readings[max(0, at - most) : at]


def broken_by(reading: Reading, record: Record) -> int | None:
    """Give the step before, if its gradient was not finite and it was done all the same; None otherwise.

    It has left weights that are not finite, whatever the statistics say, which are of the finite elements.
    """
    last = before(reading, record, 1)
    return last[0].step if last and not last[0].skipped and _has_broken_gradient(last[0]) else None


def came_out_of_nothing(reading: Reading, record: Record) -> bool:
    """Tell whether loss and gradient norm were ordinary until the step before: then nothing has grown.

    False where too little is known, and in half precision, where an overflow needs no growth.
    """
    seen = before(reading, record)
    losses = [one.loss for one in seen if one.loss is not None]
    norms = [one.total_norm for one in seen if one.total_norm is not None]
    if min(len(losses), len(norms)) < FEWEST_BEFORE or not all(map(isfinite, (*losses, *norms))):
        return False
    if NARROW in _dtypes(seen, record):
        return False
    usual = abs(median(losses))
    return max(norms[-LAST:]) <= GROWN * median(norms) and max(map(abs, losses[-LAST:])) <= GROWN * usual


def of_the_last_graph(reading: Reading, record: Record) -> tuple[str, ...]:
    """List what the loss of the last sampled step takes that is not defined everywhere, this step's included."""
    seen = (*before(reading, record, len(record.readings)), reading)
    ends = next((one.ends for one in reversed(seen) if one.ends is not None and one.ends.loss_ops), None)
    return risks(ends)


def said_before(reading: Reading, record: Record) -> str:
    """Say in words that the steps before were ordinary, with their numbers."""
    seen = before(reading, record)
    norms = [one.total_norm for one in seen if one.total_norm is not None]
    losses = [one.loss for one in seen if one.loss is not None]
    return (
        f"until step {seen[-1].step} the loss ({losses[-1]:.3g}) and the gradient norm ({norms[-1]:.3g}) were "
        "ordinary, so nothing has grown"
    )


def no_epsilon(record: Record) -> str:
    """Blame an epsilon of the optimizer that is zero in the dtype of its weights; else nothing."""
    eps = None if record.setup is None else record.setup.eps
    if eps is None or eps > SMALLEST.get(record.dtype, 0.0) / 2:
        return ""
    return (
        f"the optimizer's epsilon of {eps:g} is zero in {record.dtype}: where the second moment of a gradient is zero "
        "too, the step is 0 / 0; give it a larger one, or keep the weights in float32"
    )


def _has_broken_gradient(reading: Reading) -> bool:
    total = reading.total_norm
    return (total is not None and not isfinite(total)) or not all(map(isfinite, reading.grad_norms))


def _dtypes(seen: Sequence[Reading], record: Record) -> set[str]:
    outputs = {one.ends.output.dtype for one in seen if one.ends is not None and one.ends.output is not None}
    return {record.dtype, *outputs, *(weight.dtype for one in seen for weight in one.weights)}
