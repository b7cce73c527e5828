"""Check a gradient against central differences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from evengrad.reference._arrays import Array, float64, of_shape, positive


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GradientCheck:
    """Hold the largest error of a gradient, and where it is.

    Args:
        error: Relative, 0 or more; inf where something was not finite.
        index: Of the element.
        given: The gradient there.
        measured: The central difference there.
    """

    error: float
    index: tuple[int, ...]
    given: float
    measured: float


def central_differences(function: Callable[[Array], float], point: ArrayLike, *, step: float = 6e-6) -> Array:
    """Measure a gradient by stepping to both sides: dᵢ = (f(x + h eᵢ) − f(x − h eᵢ)) / 2h.

    h is `step`, times |xᵢ| where that is above 1. The error is h² f‴ / 6 from the curve and about 1e-16 |f| / h from
    rounding; they meet at h = ε^(1/3) = 6e-6, which leaves about 4e-11 |f|. On one side only it would be 1e-8. Within
    h of a kink, as that of relu, the result is between the slopes of both sides.

    Args:
        function: From an array of the point's shape to a number; it must not keep or change the array.
        point: x, not empty.
        step: Positive.

    Returns:
        d, of the shape of the point.

    Raises:
        ValueError: The point is empty, or a setting is out of range.

    Cost: Two calls of the function for each element.

    Example:
        >>> central_differences(lambda x: float(x[0] ** 2 * x[1]), [3.0, 5.0]).round(6).tolist()
        [30.0, 9.0]

    Source: Press et al., 2007, Numerical Recipes, third edition, section 5.7, equations 5.7.7 and 5.7.8.
    """
    x = float64("point", point)
    if not x.size:
        raise ValueError(f"point: got shape {x.shape}, want at least one element")
    h = positive("step", step) * np.maximum(1.0, np.abs(x))
    measured = np.empty_like(x)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += h[index]
        below[index] -= h[index]
        width = above[index] - below[index]  # what rounding left of 2h
        measured[index] = (function(above) - function(below)) / width
    return measured


def check_gradient(
    function: Callable[[Array], float], point: ArrayLike, gradient: ArrayLike, *, step: float = 6e-6
) -> GradientCheck:
    """Compare a gradient with central differences, element by element, and say where it is worst.

    The error is |g − d| / max(|g|, |d|, s / 1000, |f| / 10⁶), where s is the largest |g| or |d| of all elements and f
    the value at the point: an element far below the others, or below what rounding of f lets differences see, is
    judged by those. A correct gradient of a smooth function has an error of 1e-7 or less, a wrong factor of 2 one of
    0.5, a wrong sign 2. A gradient below 1e-6 |f| cannot be checked in this way: take a smaller function.

    Args:
        function: From an array of the point's shape to a number; it must not keep or change the array.
        point: Where; not within `step` of a kink.
        gradient: What to check, of the shape of the point.
        step: Positive; see `central_differences`.

    Raises:
        ValueError: The shapes differ, the point is empty, or a setting is out of range.

    Cost: Two calls of the function for each element, and one.

    Example:
        >>> check = check_gradient(lambda x: float(x[0] ** 2 * x[1]), [3.0, 5.0], [30.0, 90.0])
        >>> round(check.error, 3), check.index, check.given, round(check.measured, 6)
        (0.9, (1,), 90.0, 9.0)

    Source: `central_differences`; the error is relative as in Karpathy, CS231n course notes, Neural Networks 3.
    """
    x = float64("point", point)
    given = of_shape("gradient", gradient, x.shape)
    measured = central_differences(function, x, step=step)
    finite = np.isfinite(given) & np.isfinite(measured)
    sizes = np.where(finite, np.maximum(np.abs(given), np.abs(measured)), 0.0)
    scale = np.maximum(sizes, max(float(np.max(sizes)) / 1e3, abs(float(function(x.copy()))) / 1e6))
    error = np.full(x.shape, np.inf)
    error[finite] = np.abs(given - measured)[finite] / np.where(scale > 0, scale, 1.0)[finite]
    index = tuple(int(one) for one in np.unravel_index(np.argmax(error), x.shape))
    return GradientCheck(
        error=float(error[index]), index=index, given=float(given[index]), measured=float(measured[index])
    )
