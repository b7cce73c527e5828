"""The norm of all gradients together, from the norm of each."""

from array_api_compat import array_namespace

from evengrad.clip._policy import Array


def total_norm(norms_P: Array) -> Array:
    """Compute the square root of the sum of squares without overflow or underflow.

    Args:
        norms_P: Shape (P,), P at least 1, not negative.

    Returns:
        Float32, shape (1,); NaN when one is NaN, otherwise infinite when one is.

    Example:
        >>> import numpy as np
        >>> total_norm(np.array([3e30, 4e30], dtype=np.float32))
        array([5.e+30], dtype=float32)
    """
    xp = array_namespace(norms_P)
    norms_P = xp.astype(norms_P, xp.float32, copy=False)
    largest = xp.max(norms_P, keepdims=True)
    finite = xp.isfinite(largest)
    unit = xp.where(finite & (largest > 0), largest, xp.ones_like(largest))
    ratio_P = xp.where(finite, norms_P, xp.zeros_like(norms_P)) / unit
    total = unit * xp.sqrt(xp.sum(ratio_P * ratio_P, keepdims=True))
    return xp.where(finite, total, largest)
