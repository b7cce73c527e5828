"""The loss of a run against that of the best constant prediction: whether anything has been learnt from the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, log, prod, sqrt
from statistics import fmean, stdev

from evengrad.diagnose._ends import CROSS_ENTROPIES, DISTANCES, form_of, is_whole, sampled, samples_of
from evengrad.nouns import Ends, Reading, Record

# With fewer samples the best constant of a batch is fitted to these very samples and says little of the data.
FEWEST_SAMPLES = 8
FEWEST_BATCHES = 3
FEWEST_LOSSES = 10
# Batches of which the best constant loses the same: they are one batch, or hold the same share of each class.
SAME = 1e-5
# Of the constant's loss, what may be owed to fitting: where it is more, the correction is a guess.
MOST_OWED_FRAC = 0.1
# A run that is less than this better than a constant has learnt nothing worth its steps; a hard task that has a signal
# of a few per cent shows it by being significantly better.
NO_BETTER_FRAC = 0.05
SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """The loss relative to that of the best constant prediction.

    Args:
        ratio: Mean over mean; 1 for a model that has learnt nothing of its inputs.
        error: Standard error of the ratio.
        swing: Standard deviation of single losses, relative to their mean, beyond what the constant does on the same
            batches.
        pooled: The same of all losses, not only those of the sampled batches; None where it adds nothing.
        carries: Whether the output is known to carry something of the target, whatever the noise of the loss hides.
    """

    ratio: float
    error: float
    swing: float
    pooled: Level | None = None
    carries: bool = False

    @property
    def no_better(self) -> bool:
        """Whether the loss is surely less than 5 % better than the constant, and not significantly better at all.

        Where the sampled batches are too few to be sure, all losses may be; but not where either are better.
        """
        better = 1.0 - self.ratio
        if self.carries or better > SIGMAS * self.error:
            return False
        sure = better + SIGMAS * self.error <= NO_BETTER_FRAC
        return sure or (self.pooled is not None and self.pooled.no_better)


def loss_left(record: Record) -> float | None:
    """Return the loss of the second half of a run over that of the best constant prediction; None if unknown.

    A number for those who ask themselves whether to look further: half may be all that can be learnt of a noisy target.
    """
    level = against_constant(record) if record.readings else None
    return None if level is None else level.ratio


def against_constant(record: Record) -> Level | None:
    """Divide the loss by that of the best constant prediction, over the second half of a run.

    Pooled over the sampled batches, each loss against the constant of its own batch, freed of what the constant owes to
    having been fitted to it; where fewer than three were sampled there, all losses of the second half against the
    constants of the whole run. Where the batches are too small for that, the mean of all losses of a cross entropy is
    held against the uniform prediction, which is never better than the best constant: a ratio of 1 or more means the
    same, one below does not mean much. None where the form of the loss is not known or it is one part of a sum.

    Cost: O(n) in the readings.
    """
    middle = (record.readings[0].step + record.readings[-1].step) / 2
    late = [reading for reading in sampled(record, middle) if _is_alone(reading)]
    pairs = _pairs(late)
    paired = _level(pairs) if len(pairs) >= FEWEST_BATCHES else None
    losses = [one.loss for one in record.readings if one.loss is not None and one.step >= middle and isfinite(one.loss)]
    everywhere = [reading for reading in sampled(record) if _is_alone(reading)]
    if len(everywhere) < FEWEST_BATCHES or len(losses) < FEWEST_LOSSES:
        return paired
    constants = [constant for _, constant in _pairs(everywhere)]
    if len(constants) < FEWEST_BATCHES:
        uniform = _uniform(everywhere, next((one.loss for one in record.readings if one.loss is not None), 0.0))
        return paired or (None if uniform is None else _level([(loss, uniform) for loss in losses]))
    pooled = _pooled(losses, constants)
    return pooled if paired is None else replace(paired, pooled=pooled)


def _pooled(losses: Sequence[float], constants: Sequence[float]) -> Level:
    constant, error = fmean(constants), stdev(constants) / sqrt(len(constants))
    level = _level([(loss, constant) for loss in losses])
    return replace(level, error=sqrt(level.error**2 + (level.ratio * error / constant) ** 2))


def _is_alone(reading: Reading) -> bool:
    if reading.ends is None or reading.loss is None or not isfinite(reading.loss):
        return False
    form = form_of(reading.ends)
    return form is not None and form.alone and reading.loss >= 0.0


def _pairs(late: Sequence[Reading]) -> list[tuple[float, float]]:
    """Pair each loss with what the best constant would have, where that can be told."""
    known = [
        (reading.loss, reading.ends, reading.ends.constant_loss)
        for reading in late
        if reading.ends is not None and reading.loss is not None and reading.ends.constant_loss is not None
    ]
    known = [one for one in known if isfinite(one[2]) and one[2] > 0.0]
    if not known or len(known) < len(late):
        return []
    smallest, largest = min(one[2] for one in known), max(one[2] for one in known)
    if largest - smallest <= SAME * largest:
        return [(loss, constant) for loss, _, constant in known]
    freed = [(loss, freed_of_fit(ends)) for loss, ends, _ in known]
    return [(loss, constant) for loss, constant in freed if constant is not None]


def _level(pairs: Sequence[tuple[float, float]]) -> Level:
    constant, mean = fmean(constant for _, constant in pairs), fmean(loss for loss, _ in pairs)
    ratio = mean / constant
    left = stdev(loss - ratio * constant for loss, constant in pairs)
    error = left / (constant * sqrt(len(pairs))) * _few(len(pairs) - 1)
    return Level(ratio=ratio, error=error, swing=left / mean if mean > 0.0 else 0.0)


def _few(degrees: int) -> float:
    """How much wider two standard errors must be where they are estimated from few numbers: t (Cornish and Fisher)."""
    return 1.0 + 1.25 / degrees + 1.53 / degrees**2 + 1.43 / degrees**3


def freed_of_fit(ends: Ends) -> float | None:
    """Free the loss of the best constant of what it owes to being fitted to the batch; None where that is too much.

    A constant with k free numbers that is fitted to n samples has a loss that is too low by k / (2 n) for a cross
    entropy (Wilks) and by a factor 1 - 1 / n for a squared error (Bessel). The probe has done so for labels already;
    but with more classes than samples that does not help.
    """
    constant, target, form = ends.constant_loss, ends.target, form_of(ends)
    if constant is None or target is None or form is None or not isfinite(constant) or constant <= 0.0:
        return None
    samples = samples_of(target)
    if samples < FEWEST_SAMPLES:
        return None
    if form.name in DISTANCES:
        owed = constant / (samples - 1)
    elif is_whole(target):
        owed = max((ends.softmax_size or 2) - 1, 1) / (2 * prod(target.shape))
    elif form.name in CROSS_ENTROPIES:
        owed = max((ends.softmax_size or 2) - 1, 1) / (2 * samples)
    else:
        owed = 1 / (2 * samples)
    if owed > MOST_OWED_FRAC * (constant + owed):
        return None
    return constant if is_whole(target) and form.name not in DISTANCES else constant + owed


def _uniform(late: Sequence[Reading], start: float) -> float | None:
    """Loss of the uniform prediction of a cross entropy, if the loss is a mean over the batch; None otherwise.

    Whether it is a mean is written down nowhere: the constant tells, which loses no more than the uniform one does;
    where it is not known, a batch of one, or a start at which the loss is about that of guessing.
    """
    sizes = {reading.ends.softmax_size for reading in late if reading.ends is not None}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None or size < 2 or any(not _of_labels(reading) for reading in late):
        return None
    uniform = log(size)
    constants = [reading.ends.constant_loss for reading in late if reading.ends is not None]
    known = [constant for constant in constants if constant is not None]
    if len(known) == len(late):
        return uniform if max(known) <= (1.0 + SAME) * uniform else None
    targets = [reading.ends.target for reading in late if reading.ends is not None]
    single = all(target is not None and prod(target.shape) == 1 for target in targets)
    return uniform if single or 0.5 * uniform <= start <= 1.5 * uniform else None


def _of_labels(reading: Reading) -> bool:
    form = form_of(reading.ends) if reading.ends is not None else None
    return form is not None and form.name == "cross entropy"
