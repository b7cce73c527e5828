"""What the ends of a model say: the form of the loss, and the sampled readings that have ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from evengrad.nouns import Ends, Reading, Record, TensorReading

# A median over more readings is no better for it.
MOST_READINGS = 64
# What neither mixes nor bends its input: casts and copies. Shape operations are left out of `Ends.loss_ops` already.
SILENT_OPS = frozenset({"ToCopy", "Clone", "View", "NativeDropout"})
# What may stand above a loss and only multiplies it: the mean over a batch, the share of an accumulation, a scaler.
FACTORS = ("Mean", "Sum", "Mul", "Div")
SUMS = ("Add", "Sub")
MOST_ABOVE = 12
# How the functions of torch, and the formulas that people write for them, begin in the graph. The longest comes first.
FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cross entropy", ("NllLoss", "LogSoftmax")),
    ("cross entropy", ("NllLoss2D", "LogSoftmax")),
    ("soft cross entropy", ("Div", "Neg", "Sum", "Mul", "LogSoftmax")),
    ("likelihood", ("NllLoss",)),
    ("likelihood", ("NllLoss2D",)),
    ("binary cross entropy with logits", ("BinaryCrossEntropyWithLogits",)),
    ("binary cross entropy", ("BinaryCrossEntropy",)),
    ("squared error", ("MseLoss",)),
    ("squared error", ("Mean", "Pow", "Sub")),
    ("squared error", ("Sum", "Pow", "Sub")),
    ("absolute error", ("Mean", "Abs", "Sub")),
    ("absolute error", ("Sum", "Abs", "Sub")),
    ("absolute error", ("L1Loss",)),
    ("absolute error", ("SmoothL1Loss",)),
    ("absolute error", ("HuberLoss",)),
)
CROSS_ENTROPIES = frozenset({"cross entropy", "soft cross entropy"})
DISTANCES = frozenset({"squared error", "absolute error"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a loss is made of.

    Args:
        name: `cross entropy`, `squared error`, ...
        below: The operations between the loss and the last layer with weights, the nearest to the loss first.
        alone: Whether it is all of the loss: neither one part of a sum, nor weighted by something, nor itself summed
            up where it could be a mean.
    """

    name: str
    below: tuple[str, ...]
    alone: bool = True


def form_of(ends: Ends) -> Form | None:
    """Recognise the loss by its operations, as one part of a sum where it is one; None for what is not known.

    Example:
        >>> form_of(Ends(loss_ops=("NllLoss", "LogSoftmax", "Softmax")))
        Form(name='cross entropy', below=('Softmax',), alone=True)
    """
    return _parsed(ends.loss_ops)


@lru_cache(maxsize=64)  # the readings of a run have the same few
def _parsed(loss_ops: tuple[str, ...]) -> Form | None:
    ops = tuple(op for op in (re.sub(r"Backward\d*$", "", op) for op in loss_ops) if op not in SILENT_OPS)
    alone = True
    for _ in range(MOST_ABOVE):
        for name, begins in FORMS:
            if ops[: len(begins)] == begins:
                return Form(name=name, below=ops[len(begins) :], alone=alone)
        if not ops or ops[0] not in (*FACTORS, *SUMS):
            return None
        alone = alone and ops[0] in {"Mean", "Div"}
        ops = ops[1:]
    return None


def sampled(record: Record, since: float = 0.0) -> list[Reading]:
    """List the readings from a step on that have ends; of very many an even share, the first and the last included."""
    found = [reading for reading in record.readings if reading.ends is not None and reading.step >= since]
    if len(found) <= MOST_READINGS:
        return found
    last = len(found) - 1
    return [found[round(at * last / (MOST_READINGS - 1))] for at in range(MOST_READINGS)]


def is_whole(tensor: TensorReading) -> bool:
    """Tell whether a tensor holds ids or labels."""
    return tensor.dtype.startswith(("int", "uint", "bool"))


def samples_of(tensor: TensorReading) -> int:
    """Count the samples of a batch."""
    return tensor.shape[0] if tensor.shape else 0


def rms_of(tensor: TensorReading) -> float:
    """Root mean square of the finite elements."""
    return float((tensor.mean**2 + tensor.std**2) ** 0.5)


def typical(numbers: list[float]) -> float:
    """Median of the numbers that are finite; 0 without any."""
    finite = [number for number in numbers if abs(number) < float("inf")]
    return median(finite) if finite else 0.0
