"""Statistics of one tensor in host memory: few passes, each by what NumPy or BLAS does fastest, and no wait."""

from __future__ import annotations

from math import inf, isfinite, nan, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evengrad.probe._statistics import RELATIVE_SLOPES, SLOPE_LEFT, real

ROW = 1024  # elements of a row whose dot product BLAS forms: off by 1e-7 at most
DOTS = getattr(np, "vecdot", None)  # NumPy 2

# Mean square above which float32 squares have lost nothing that counts to underflow.
LOWEST_SQUARE = 1e-30

Array = NDArray[Any]

# Largest magnitudes of a tensor between which its squares add up without overflow, and without losing to underflow
# what counts.
SAFE = {
    np.dtype(kind): (float(np.finfo(kind).tiny) ** 0.5 * 1e7, float(np.finfo(kind).max) ** 0.5 * 1e-4)
    for kind in (np.float32, np.float64)
}


def on_host(tensor: Tensor) -> Array | None:
    """Give a tensor's memory as an array of float32 or float64; of half precision a copy.

    Returns:
        None where it is on another device, or where its memory does not hold its elements one by one.
    """
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:  # sharded, traced, or somebody's own
        return None
    value = real(tensor)
    try:
        array: Array = (value if value.dtype in (torch.float32, torch.float64) else value.float()).numpy()
    except (RuntimeError, TypeError):  # inside of torch.func, or a view of imaginary parts
        return None
    return array


def activation_of(array: Array, *, unit_dim: int, nonlinearity: str | None) -> tuple[float, ...]:
    """Measure an output, as `activation_vector` does.

    Cost: Some five passes over the output, one of them in float64; four more for a saturating non-linearity.
    """
    if array.size == 0:
        return 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, nan
    with np.errstate(all="ignore"):  # what is not finite is what is looked for
        alive = array != 0
        zeros = array.size - int(np.count_nonzero(alive))
        finite, rms, mean, absmax = _sized(_line(array), mean=True)
        saturated = _saturated_frac(array, nonlinearity)
        return finite, rms, mean, absmax, zeros / array.size, _dead_frac(alive, zeros, unit_dim), saturated


def gradient_of(array: Array) -> tuple[float, float]:
    """Measure a gradient, as `gradient_vector` does."""
    with np.errstate(all="ignore"):
        finite, rms, _, _ = _sized(_line(array), mean=False)
    return finite, rms


def norm_of(array: Array) -> float:
    """Measure a norm; what is not finite shows in it."""
    with np.errstate(all="ignore"):
        line = _line(array)
        square = _square(line)
        if LOWEST_SQUARE * line.size < square < inf:
            return sqrt(square)
        values = np.abs(line, dtype=np.float64)
        largest = float(values.max(initial=0.0))
        if largest == 0.0 or not isfinite(largest):
            return largest
        values /= largest
        return largest * sqrt(float(values.dot(values)))


def is_finite(array: Array) -> bool:
    """Tell whether all is finite: a minimum or maximum over a NaN is NaN."""
    if array.size == 0:
        return True
    with np.errstate(all="ignore"):
        return isfinite(np.minimum.reduce(array, axis=None)) and isfinite(np.maximum.reduce(array, axis=None))


def is_mask(array: Array) -> bool:
    """Tell whether there is nothing but zeros and minus infinities."""
    return bool(((array == 0) | (array == -inf)).all())


def _line(array: Array) -> Array:
    """View as one dimension in the order of memory; a copy only where the memory has gaps or overlaps."""
    if array.flags.c_contiguous:
        return array.reshape(-1)
    order = sorted(range(array.ndim), key=lambda dim: array.strides[dim], reverse=True)
    return array.transpose(order).reshape(-1)


def _sized(line: Array, *, mean: bool) -> tuple[float, float, float, float]:
    """Tell whether all is finite; root mean square, mean and largest magnitude of what is."""
    count = line.size
    if count == 0:
        return 1.0, 0.0, 0.0, 0.0
    absmax = max(-float(np.minimum.reduce(line)), float(np.maximum.reduce(line)))
    low, high = SAFE[line.dtype]
    if low < absmax < high:  # not where one is NaN
        average = float(np.add.reduce(line, dtype=np.float64)) / count if mean else 0.0
        return 1.0, sqrt(_square(line) / count), average, absmax
    if absmax == 0.0:
        return 1.0, 0.0, 0.0, 0.0
    return float(isfinite(absmax)), *_scaled(line)


def _scaled(line: Array) -> tuple[float, float, float]:
    """Measure what is finite, scaled by the largest so that nothing overflows."""
    values = line[np.isfinite(line)].astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0.0, 0.0, 0.0
    values /= largest
    return largest * sqrt(float(np.square(values).mean())), largest * float(values.mean()), largest


def _square(line: Array) -> float:
    """Add up squares: in float32 within short rows, which are added up in float64."""
    whole = line.size - line.size % ROW
    rest = line[whole:]
    total = float(rest.dot(rest))
    if whole:
        rows = line[:whole].reshape(-1, ROW)
        squares = np.einsum("ij,ij->i", rows, rows) if DOTS is None else DOTS(rows, rows)
        total += float(squares.sum(dtype=np.float64))
    return total


def _dead_frac(alive: Array, zeros: int, unit_dim: int) -> float:
    """Give the share of units that are never alive; none is where there are fewer zeros than observations of one."""
    if alive.ndim == 0:
        return float(zeros)
    units: int = alive.shape[unit_dim]
    if zeros * units < alive.size:
        return 0.0
    others = tuple(dim for dim in range(alive.ndim) if dim != unit_dim % alive.ndim)
    dead = units - int(np.count_nonzero(np.logical_or.reduce(alive, axis=others)))
    return dead / units


def _saturated_frac(array: Array, nonlinearity: str | None) -> float:
    slope = RELATIVE_SLOPES.get(nonlinearity or "")
    if slope is None:
        return nan
    with torch.no_grad():
        flat: Array = torch.lt(slope(torch.from_numpy(array)), SLOPE_LEFT).numpy()
    share: float = int(np.count_nonzero(flat)) / array.size
    return share
