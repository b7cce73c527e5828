"""The norm of all gradients together, from the norm of each."""

import math
from typing import Any

from array_api_compat import array_namespace

from evengrad.clip._policy import Array

LARGEST = 1e18
"""A norm above cannot be squared in float32: it would leave a variance infinite for good."""

_SAFE = (
    1e37  # what is not finite stays so when divided by it; 1 / 1e38 would be 0 where small numbers are flushed (XLA)
)
_TINY = 1e-30  # never divides by 0; nothing else changes, because the unit cancels


def total_norm(norms_P: Array, *, norm_type: float = 2.0) -> Array:
    """Compute the norm of all gradients together, (sum of n^p)^(1/p), without overflow or underflow.

    Args:
        norms_P: The p-norm of each gradient, shape (P,), P at least 1, not negative.
        norm_type: Which norm p it is, at least 1; `math.inf` for the largest element.

    Returns:
        Float32, shape (1,); NaN when one is NaN, otherwise infinite when one is, or when it is above 3.4e38 (of which
        NumPy warns).

    Example:
        >>> import numpy as np
        >>> total_norm(np.array([3e30, 4e30], dtype=np.float32))
        array([5.e+30], dtype=float32)
    """
    return total(array_namespace(norms_P), norms_P, norm_type)


def total(xp: Any, norms_P: Array, norm_type: float = 2.0) -> Array:
    """Compute `total_norm` with the array library at hand, which costs a microsecond to find."""
    norms_P = xp.astype(norms_P, xp.float32, copy=False)
    largest = xp.max(norms_P, keepdims=True)
    if math.isinf(norm_type):
        return largest
    unit = xp.where(largest < _SAFE, largest + _TINY, _SAFE)
    ratio_P = norms_P / unit
    if norm_type == 2:
        return unit * xp.sqrt(xp.sum(ratio_P * ratio_P, keepdims=True))
    if norm_type == 1:
        return unit * xp.sum(ratio_P, keepdims=True)
    return unit * xp.sum(ratio_P**norm_type, keepdims=True) ** (1.0 / norm_type)


def bounded(xp: Any, norms: Array, bound: Array | float, counts: Array) -> Array:
    """Compute the scale that brings norms down to a bound; 1 where they are below it, or do not count.

    Args:
        xp: The array library at hand.
        norms: Any shape, float32.
        bound: A number, or an array of a shape that fits.
        counts: Where to look at the norm at all, bool, of a shape that fits.
    """
    above = counts & (norms > bound)
    return xp.where(above, bound / xp.where(above, norms, 1.0), 1.0)
