"""From where to where a number is swept, out of the readings of an untreated training."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import median
from typing import final

from evengrad.nouns import ParameterReading, Reading, Record

# A step of plain descent that moves the weights by a thousandth of their norm is the size at which trainings go well
# (the update-to-weight ratio); one that moves them by all of it starts anew.
SMALL_STEP = 1e-3
# Norms of a training that went well spread over less than this; what lies above are spikes, or a training that blew up.
WIDEST = 100.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A number and its ends."""

    setting: str
    low: float
    high: float
    log: bool = True
    reason: str = ""

    def at(self, part: float) -> float:
        """Give the value at a share of the range, of its decades where it is logarithmic.

        Example:
            >>> round(Range(setting="max_norm", low=0.1, high=10.0).at(0.5), 6)
            1.0
        """
        if self.log:
            return float(self.low * (self.high / self.low) ** part)
        return self.low + (self.high - self.low) * part


def threshold_range(record: Record, *, failed: bool) -> Range:
    """Sweep a threshold from a hundredth of the median gradient norm to above the largest.

    With SGD the step is the learning rate times the gradient: the range reaches down to thresholds whose step is a
    thousandth of the norm of the weights, since a network that explodes has no small norms to go by. Above the largest
    norm, or a hundred times the median where norms blow up, a threshold is as good as none.

    Args:
        record: Readings without clipping.
        failed: Whether the training diverged; then thresholds that let a step replace the weights are left out.
    """
    norms = [one.total_norm for one in record.readings if one.total_norm and isfinite(one.total_norm)]
    if not norms:
        return Range(setting="max_norm", low=0.01, high=100.0, reason="no finite gradient norm was read")
    middle, largest = median(norms), max(norms)
    low, high = middle / WIDEST, min(1.01 * largest, WIDEST * middle)
    reason = f"from 1/100 of the median gradient norm {middle:.3g} to above the largest {largest:.3g}"
    replaced = _replacing_norm(record)
    if replaced is not None:
        low = min(low, SMALL_STEP * replaced)
        if failed and replaced > 10 * low:
            high = min(high, replaced)
        reason += f"; a norm of {replaced:.3g} would move the weights by all of their own in one step of SGD"
    low = max(low, 1e-12)
    return Range(setting="max_norm", low=low, high=max(high, 10 * low), reason=reason)


def lr_range(record: Record) -> Range:
    """Sweep the factor of the learning rate to updates of 1e-4 to 1e-2 of the weights, at least a decade each."""
    ratios = [one.update_ratio for one in _weights(record) if one.update_ratio and isfinite(one.update_ratio)]
    middle = median(ratios) if ratios else SMALL_STEP
    low, high = min(0.1, max(1e-4, 1e-4 / middle)), max(10.0, min(1e3, 1e-2 / middle))
    return Range(setting="factor", low=low, high=high, reason=f"the update is {middle:.2g} of the weights as it is")


def gain_range(record: Record) -> Range:
    """Sweep the gain of the initial weights from a quarter to four."""
    reason = "1 for linear layers, 1.41 for relu, 1.67 for tanh, 4 for sigmoid, and as much to the other side"
    return Range(setting="gain", low=0.25, high=4.0, reason=reason)


def weight_range(record: Record) -> Range:
    """Sweep the bound of a unit's weights around the norms that units have."""
    norms = [one.weight_rms * sqrt(one.fan_in) for one in _weights(record) if one.fan_in]
    known = [norm for norm in norms if 0 < norm < inf]
    if not known:
        return Range(setting="max_norm", low=0.3, high=10.0, reason="around the 3 to 4 of Srivastava et al. 2014")
    reason = f"the weights of a unit have a norm of {min(known):.2g} to {max(known):.2g} in the untreated training"
    return Range(setting="max_norm", low=max(min(known) / 2, 1e-6), high=2 * max(known), reason=reason)


def _weights(record: Record) -> list[ParameterReading]:
    return [one for reading in record.readings for one in reading.weights]


def _replacing_norm(record: Record) -> float | None:
    """Give the gradient norm whose step of SGD is as long as all weights together; None for other optimizers."""
    first: Reading | None = next((one for one in record.readings if one.weights and one.lrs), None)
    if first is None or record.setup is None or record.setup.optimizer != "SGD":
        return None
    weights = sqrt(sum(one.weight_rms**2 * one.numel for one in first.weights))
    lr = max(first.lrs)
    return weights / lr if lr > 0 and 0 < weights < inf else None
