"""What the steps of a run do to its weights, read on the sampled steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from statistics import median
from typing import NamedTuple

from evengrad.nouns import ParameterReading, Reading, Record, Setup

# What a rule reads of a run, however long it is: the first steps, where everything begins, and as many spread evenly.
FIRST_SAMPLES = 16
MORE_SAMPLES = 48

# The usual initialisations give a weight a gain (rms times the root of its inputs) from 0.16 (N(0, 0.02) over 64
# inputs) to 1.41 (He). A weight that lets less than a tenth of the signal through was meant to start at nearly nothing
# (LoRA's B, zero-initialised branches, heads): its first steps are large by design, so ratios to it say nothing.
SMALLEST_GAIN = 0.1

# Half a unit in the last place, relative: a step smaller than that leaves a number as it is.
RESOLUTIONS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
HALVES = frozenset({"float16", "bfloat16"})


def resolution_of(dtype: str) -> float:
    """Give the relative size below which a step is rounded away; of float32 for names that are not known.

    Example:
        >>> resolution_of("bfloat16")
        0.00390625
    """
    return RESOLUTIONS.get(dtype, RESOLUTIONS["float32"])


def thinned(readings: Sequence[Reading]) -> tuple[Reading, ...]:
    """Choose the first readings, the last, and some spread evenly between: a rule's cost then has a bound."""
    if len(readings) <= FIRST_SAMPLES + MORE_SAMPLES:
        return tuple(readings)
    rest = len(readings) - FIRST_SAMPLES
    chosen = [FIRST_SAMPLES + (rest - 1) * number // (MORE_SAMPLES - 1) for number in range(MORE_SAMPLES)]
    return (*readings[:FIRST_SAMPLES], *(readings[place] for place in chosen))


def sampled(record: Record) -> tuple[Reading, ...]:
    """List the steps that were taken and whose weights were read."""
    return thinned([reading for reading in record.readings if reading.weights and not reading.skipped])


def gain_of(weight: ParameterReading) -> float:
    """How much a signal of independent parts grows in a weight: its rms times the root of its inputs.

    Example:
        >>> gain_of(ParameterReading(name="fc.weight", fan_in=16, weight_rms=0.5))
        2.0
    """
    return weight.weight_rms * sqrt(weight.fan_in)


def matrices(reading: Reading) -> list[ParameterReading]:
    """List the weights whose steps can be compared with them: matrices that let a signal through."""
    return [one for one in reading.weights if one.fan_in > 0 and SMALLEST_GAIN <= gain_of(one) < float("inf")]


def typical_ratio(reading: Reading) -> float | None:
    """Norm of the step over norm of the weights, the median of all matrices; None where no step was seen."""
    ratios = [one.update_ratio for one in matrices(reading) if one.update_ratio is not None]
    finite = [ratio for ratio in ratios if isfinite(ratio)]
    return median(finite) if finite else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a run has moved its matrices: medians over them, relative to their norms at the first sampled step.

    Args:
        steps: Steps from the first sampled one to the last.
        length: Length of the way: the lengths of all steps added up, those between samples interpolated.
        distance: Distance between its ends.
        straightness: Distance over length.
        halfway: The same of the first half of the length.
        full_steps: How many steps of one size go as straight as these if their directions are noise: the square of the
            sum of the lengths over the sum of the squares, since noise goes the root of that sum. As many as there are
            where all are equal, one where a single one is all of the way.
    """

    steps: int
    length: float
    distance: float
    straightness: float
    halfway: float
    full_steps: float


def way_of(readings: Sequence[Reading]) -> Way | None:
    """Follow every matrix through the sampled readings; None for fewer than three of them."""
    if len(readings) < 3:
        return None
    courses = [one for one in _courses(readings) if one is not None]
    if not courses:
        return None
    return Way(
        steps=readings[-1].step - readings[0].step,
        length=median(one.length for one in courses),
        distance=median(one.distance for one in courses),
        straightness=median(one.distance / one.length for one in courses),
        halfway=median(one.halfway for one in courses),
        full_steps=median(one.full_steps for one in courses),
    )


class _Course(NamedTuple):
    """The way of one matrix, as `Way` has it of all."""

    length: float
    distance: float
    halfway: float
    full_steps: float


def _courses(readings: Sequence[Reading]) -> list[_Course | None]:
    """Follow each matrix; None of one that did not move or was not seen."""
    first = {one.name: one.weight_rms for one in readings[0].weights if one.fan_in > 0 and one.weight_rms > 0.0}
    series: dict[str, list[tuple[int, float, float]]] = {name: [] for name in first}
    for reading in readings:
        for one in reading.weights:
            if one.name in first and one.update_ratio is not None and one.moved_ratio is not None:
                size = one.update_ratio * one.weight_rms / first[one.name]
                series[one.name].append((reading.step, size, one.moved_ratio))
    return [_course(points) for points in series.values()]


def _course(points: Sequence[tuple[int, float, float]]) -> _Course | None:
    lengths, squares = [0.0], 0.0
    for (step, size, _), (later, next_size, _) in pairwise(points):
        lengths.append(lengths[-1] + (later - step) * (size + next_size) / 2)
        squares += (later - step) * (size * size + size * next_size + next_size * next_size) / 3
    length = lengths[-1]
    if len(points) < 3 or not 0.0 < length < float("inf") or not 0.0 < squares < float("inf"):
        return None
    half = next(place for place, so_far in enumerate(lengths) if so_far >= length / 2)
    return _Course(length, points[-1][2], points[half][2] / lengths[half], length * length / squares)


def is_of_adams_kind(optimizer: str) -> bool:
    """Tell whether an optimizer divides by the root of a second moment, so that the gradient's scale cancels.

    Example:
        >>> [is_of_adams_kind(name) for name in ("AdamW", "RMSprop", "AdamW + SGD", "")]
        [True, True, False, False]
    """
    names = optimizer.lower().split(" + ")
    return all("adam" in name or "rmsprop" in name for name in names)


def intended_ratio(reading: Reading, setup: Setup) -> float | None:
    """How large the step is by arithmetic, relative to the weights and before it is rounded; the median of matrices.

    A step of Adam's kind changes each element by about the learning rate; a plain one by the learning rate times the
    gradient, and momentum m makes that larger by 1 / (1 - m).
    """
    if not reading.lrs:
        return None
    lr = max(reading.lrs)
    if is_of_adams_kind(setup.optimizer):
        found = [lr / one.weight_rms for one in matrices(reading) if one.grad_rms]
    else:
        gain = lr * reading.scale / (1.0 - min(setup.momentum, 0.999))
        found = [gain * one.grad_rms / one.weight_rms for one in matrices(reading) if one.grad_rms]
    finite = [ratio for ratio in found if isfinite(ratio)]
    return median(finite) if finite else None
