"""Float64 arrays, and the refusal of what is none or has another shape."""

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
State = Mapping[str, Array]


def float64(name: str, values: ArrayLike) -> Array:
    """Take real numbers of any dtype as float64; nothing is copied that is float64 already."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":  # a cast would drop the imaginary part of a complex number
        raise ValueError(f"{name}: got {array.dtype}, want real numbers")
    return array.astype(np.float64, copy=False)


def of_shape(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Take numbers of one shape only: NumPy would stretch others to fit."""
    array = float64(name, values)
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, want {shape}")
    return array


def matrix(name: str, values: ArrayLike) -> Array:
    """Take numbers with two axes, neither of them empty."""
    array = float64(name, values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: got shape {array.shape}, want two axes and at least one element")
    return array


def positive(name: str, value: float) -> float:
    """Take a number above 0; inf is one."""
    return _number(name, value, "a positive number", holds=_is_real(value) and value > 0)


def not_negative(name: str, value: float) -> float:
    """Take a finite number of 0 or more."""
    return _number(name, value, "a finite number of 0 or more", holds=_is_real(value) and 0 <= value < math.inf)


def fraction(name: str, value: float) -> float:
    """Take a number of 0 or more, below 1."""
    return _number(name, value, "a number in [0, 1)", holds=_is_real(value) and 0 <= value < 1)


def norm_order(value: float) -> float:
    """Take the p of a p-norm: below 1 it would be no norm."""
    return _number("norm_type", value, "a number of 1 or more, or inf", holds=_is_real(value) and value >= 1)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(name: str, value: float, wanted: str, *, holds: bool) -> float:
    if not holds:
        raise ValueError(f"{name}: got {value if _is_real(value) else repr(value)}, want {wanted}")
    return float(value)
