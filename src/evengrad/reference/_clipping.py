"""Norms, and what bounds gradients and weights by value or by norm."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, float64, norm_order, positive

_EPS = 1e-6  # torch's, so that a norm of 0 divides nothing by 0


def norm(values: ArrayLike, *, norm_type: float = 2.0) -> float:
    """Take the p-norm of all elements: (Σ |x|ᵖ)^(1/p); the largest |x| for p = inf.

    The largest is taken out first, so that no power overflows or underflows. 0 for an empty array; NaN if there is a
    NaN, else inf if there is an inf.

    Args:
        values: Any shape.
        norm_type: p, 1 or more, or inf.

    Raises:
        ValueError: p is below 1.

    Example:
        >>> norm([3.0, -4.0]), norm([3.0, -4.0], norm_type=1), norm([3.0, -4.0], norm_type=float("inf"))
        (5.0, 7.0, 4.0)
    """
    p, sizes = norm_order(norm_type), np.abs(float64("values", values))
    largest = float(np.max(sizes, initial=0.0))
    if largest == 0 or math.isinf(p) or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((sizes / largest) ** p) ** (1 / p))


def squared_norms(gradients: Sequence[ArrayLike]) -> Array:
    """Sum the squares of each gradient: the vector that a guard measures, in float64.

    Squares above 1.8e308 are inf: sizes above 1.3e154. 0 for an empty gradient.

    Args:
        gradients: Any shapes.

    Returns:
        One number for each gradient.

    Example:
        >>> squared_norms([[3.0, 4.0], [[1.0]], []]).tolist()
        [25.0, 1.0, 0.0]
    """
    return np.array([np.sum(float64("gradient", one) ** 2) for one in gradients], dtype=np.float64)


def total_norm(gradients: Sequence[ArrayLike], *, norm_type: float = 2.0) -> float:
    """Take the p-norm of all gradients as if they were one vector: the p-norm of their p-norms.

    Args:
        gradients: Any shapes; 0 for none.
        norm_type: p, 1 or more, or inf.

    Raises:
        ValueError: p is below 1.

    Example:
        >>> total_norm([[3.0], [0.0, 4.0]])
        5.0
    """
    return norm([norm(one, norm_type=norm_type) for one in gradients], norm_type=norm_order(norm_type))


def truncate(values: ArrayLike, *, bound: float) -> Array:
    """Cut every element off at ± bound: x ← min(max(x, −c), c).

    Truncation is an older word for clipping by value. It has nothing to do with truncated back-propagation through
    time, which cuts a sequence into pieces and bounds no number. A NaN stays one, an inf becomes the bound.

    Args:
        values: Any shape.
        bound: c, positive.

    Raises:
        ValueError: The bound is not positive.

    Example:
        >>> truncate([-3.0, 0.5, 2.0], bound=1.0).tolist()
        [-1.0, 0.5, 1.0]
    """
    c = positive("bound", bound)
    return np.clip(float64("values", values), -c, c)


def clip_by_value(gradients: Sequence[ArrayLike], *, clip_value: float) -> tuple[Array, ...]:
    """Truncate every gradient: g ← min(max(g, −c), c), element by element.

    It turns the direction: large elements lose, small ones do not. Each element is bounded, but the norm only by c √n.

    Args:
        gradients: Any shapes.
        clip_value: c, positive.

    Raises:
        ValueError: The bound is not positive.

    Example:
        >>> clip_by_value([[3.0, -0.1]], clip_value=1.0)[0].tolist()
        [1.0, -0.1]

    Source: Mikolov, 2012, Statistical Language Models Based on Neural Networks, doctoral thesis, Brno. Equals
    `torch.nn.utils.clip_grad_value_`.
    """
    c = positive("clip_value", clip_value)
    return tuple(truncate(one, bound=c) for one in gradients)


def clip_by_norm(
    gradients: Sequence[ArrayLike], *, max_norm: float, norm_type: float = 2.0
) -> tuple[tuple[Array, ...], float]:
    """Shrink all gradients by one factor so that their common norm is at most c: g ← g · min(1, c / (N + 1e-6)).

    The direction stays. A gradient of 0 stays 0. If N is NaN, everything becomes NaN; if N is inf, everything finite
    becomes 0 and what is inf becomes NaN: one bad element spoils or undoes the whole step, and a bound does not help.

    Args:
        gradients: Any shapes; none at all has norm 0.
        max_norm: c, positive; inf only measures.
        norm_type: p, 1 or more, or inf.

    Returns:
        The clipped gradients, and the norm N before clipping.

    Raises:
        ValueError: The bound is not positive, or p is below 1.

    Example:
        >>> clipped, before = clip_by_norm([[3.0], [4.0]], max_norm=1.0)
        >>> [one.round(3).tolist() for one in clipped], before
        ([[0.6], [0.8]], 5.0)

    Source: Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063, algorithm 1. Differs in the 1e-6, which is that of
    `torch.nn.utils.clip_grad_norm_`, and so also clips a norm that is less than 1e-6 below the bound.
    """
    before = total_norm(gradients, norm_type=norm_type)
    scale = _scale(before, positive("max_norm", max_norm))
    return tuple(float64("gradient", one) * scale for one in gradients), before


def clip_each_by_norm(
    gradients: Sequence[ArrayLike], *, max_norm: float, norm_type: float = 2.0
) -> tuple[tuple[Array, ...], Array]:
    """Shrink each gradient by a factor of its own: gᵢ ← gᵢ · min(1, c / (Nᵢ + 1e-6)).

    A tensor that explodes, or is not finite, does nothing to the others; but the direction of the whole turns.

    Args:
        gradients: Any shapes.
        max_norm: c, positive; inf only measures.
        norm_type: p, 1 or more, or inf.

    Returns:
        The clipped gradients, and their norms Nᵢ before clipping.

    Raises:
        ValueError: The bound is not positive, or p is below 1.

    Example:
        >>> clipped, before = clip_each_by_norm([[3.0], [0.5]], max_norm=1.0)
        >>> [one.round(3).tolist() for one in clipped], before.tolist()
        ([[1.0], [0.5]], [3.0, 0.5])

    Source: `clip_by_norm`, one gradient at a time.
    """
    each = [clip_by_norm([one], max_norm=max_norm, norm_type=norm_type) for one in gradients]
    return tuple(clipped for (clipped,), _ in each), np.array([before for _, before in each], dtype=np.float64)


def clip_weights(weights: Sequence[ArrayLike], *, clip_value: float) -> tuple[Array, ...]:
    """Truncate the weights after a step: w ← min(max(w, −c), c).

    It bounds what a layer can multiply a signal by, roughly: with n inputs, by c n. The optimizer knows nothing of it.

    Args:
        weights: Any shapes.
        clip_value: c, positive.

    Raises:
        ValueError: The bound is not positive.

    Example:
        >>> clip_weights([[0.5, -0.001]], clip_value=0.01)[0].tolist()
        [0.01, -0.001]

    Source: Arjovsky, Chintala and Bottou, 2017, arXiv:1701.07875, algorithm 1, line 7.
    """
    return clip_by_value(weights, clip_value=clip_value)


def limit_unit_norms(weights: ArrayLike, *, max_norm: float, unit_axis: int = 0) -> Array:
    """Shrink the incoming weights of each unit to length c at most: w_u ← w_u · min(1, c / ‖w_u‖).

    No 1e-6 here: a unit at the bound or below keeps its weights to the bit, one of zeros too. A unit with a NaN or an
    inf becomes NaN where its norm says so, the others are as without it.

    Args:
        weights: At least two axes: those of a unit are all but `unit_axis`.
        max_norm: c, positive.
        unit_axis: 0 for torch's dense and convolution weights; 1 for a transposed convolution.

    Raises:
        ValueError: There are fewer than two axes or no such axis, or the bound is not positive.

    Example:
        >>> limit_unit_norms([[3.0, 4.0], [0.3, 0.4]], max_norm=1.0).round(3).tolist()
        [[0.6, 0.8], [0.3, 0.4]]

    Source: Srivastava et al., 2014, JMLR 15:1929-1958, section 5.1.
    """
    c, w = positive("max_norm", max_norm), float64("weights", weights)
    if w.ndim < 2 or not -w.ndim <= unit_axis < w.ndim:
        raise ValueError(
            f"weights: got shape {w.shape} and unit_axis {unit_axis}, want at least two axes and one of them"
        )
    units = np.moveaxis(w, unit_axis, 0)
    norms = np.array([norm(unit) for unit in units], dtype=np.float64)
    scale = np.divide(c, norms, out=np.ones_like(norms), where=~(norms <= c))
    return w * np.moveaxis(scale.reshape(-1, *[1] * (w.ndim - 1)), 0, unit_axis)


def _scale(before: float, max_norm: float) -> float:
    return float(np.minimum(1.0, max_norm / (before + _EPS)))  # NumPy's minimum keeps a NaN
