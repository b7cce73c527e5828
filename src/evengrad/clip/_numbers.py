"""An array library for arrays of one number on the host, in plain Python: where NumPy spends its time on overhead."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from evengrad.clip._policy import AbstractPolicy, Array, Signals, State

FEW = 100  # norms up to which Python's own loop is quicker than NumPy's overhead
_TRIAL = (0.0, 1.0, 3e19, float("nan"), 2.0)


@final
class Number:
    """An array of shape (1,): a float64 or a bool, with the operators of the array API."""

    __slots__ = ("value",)

    def __init__(self, value: float | bool) -> None:
        self.value = value

    def __array_namespace__(self, **_: Any) -> Any:
        return Numbers

    def __getitem__(self, place: int) -> float | bool:
        return self.value

    def __len__(self) -> int:
        return 1

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        return f"Number({self.value!r})"

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array with one number."""
        return (1,)

    def __add__(self, other: Any) -> Any:
        return Number(self.value + (other.value if type(other) is Number else other))

    def __sub__(self, other: Any) -> Any:
        return Number(self.value - (other.value if type(other) is Number else other))

    def __mul__(self, other: Any) -> Any:
        if type(other) is Vector:
            return other * self
        return Number(self.value * (other.value if type(other) is Number else other))

    def __truediv__(self, other: Any) -> Any:
        return Number(_over(self.value, other.value if type(other) is Number else other))

    def __rtruediv__(self, other: float) -> Any:
        return Number(_over(other, self.value))

    def __rsub__(self, other: float) -> Any:
        return Number(other - self.value)

    def __pow__(self, other: float) -> Any:
        try:
            return Number(self.value**other)
        except OverflowError:
            return Number(math.inf)

    def __neg__(self) -> Any:
        return Number(-self.value)

    def __and__(self, other: Any) -> Any:
        return Number(self.value and (other.value if type(other) is Number else other))

    def __or__(self, other: Any) -> Any:
        return Number(self.value or (other.value if type(other) is Number else other))

    def __invert__(self) -> Any:
        return Number(not self.value)

    def __lt__(self, other: Any) -> Any:
        return Number(self.value < (other.value if type(other) is Number else other))

    def __le__(self, other: Any) -> Any:
        return Number(self.value <= (other.value if type(other) is Number else other))

    def __gt__(self, other: Any) -> Any:
        return Number(self.value > (other.value if type(other) is Number else other))

    def __ge__(self, other: Any) -> Any:
        return Number(self.value >= (other.value if type(other) is Number else other))

    def __eq__(self, other: object) -> Any:
        return Number(self.value == (other.value if type(other) is Number else other))

    def __ne__(self, other: object) -> Any:
        return Number(self.value != (other.value if type(other) is Number else other))

    __hash__ = None  # type: ignore[assignment]
    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__


@final
class Vector:
    """The norms of all parameters, as far as a policy that decides by their total needs them: scaled and to a power.

    What is asked of it is worked out from the norms as they came, so that each operation costs as much as a number's.

    Args:
        values: The norms, NumPy, shape (P,).
        unit: What they were divided by.
        power: To which power they were taken after that.
    """

    __slots__ = ("power", "unit", "values")

    def __init__(self, values: Array, unit: float = 1.0, power: float = 1.0) -> None:
        self.values, self.unit, self.power = values, unit, power

    def __array_namespace__(self, **_: Any) -> Any:
        return Numbers

    def __len__(self) -> int:
        return len(self.values)

    def __truediv__(self, other: Any) -> Any:
        if self.power != 1:
            raise TypeError("only norms themselves can be divided here")
        return Vector(self.values, self.unit * _plain(other))

    def __mul__(self, other: Any) -> Any:
        if type(other) is Vector:
            if other.values is not self.values or other.unit != self.unit:
                raise TypeError("only equal norms can be multiplied here")
            return Vector(self.values, self.unit, self.power + other.power)
        return self / _over(1.0, _plain(other))

    def __pow__(self, other: float) -> Any:
        return Vector(self.values, self.unit, self.power * other)

    def max(self) -> float:
        """Return the largest; NaN when one is."""
        if len(self.values) > FEW:
            largest = float(np.maximum.reduce(self.values))
        else:
            numbers = self.values.tolist()
            largest = math.nan if math.isnan(sum(numbers)) else max(numbers)
        return float(_over(largest, self.unit) ** self.power)

    def sum(self) -> float:
        """Return the sum."""
        if self.power != 2:
            return float(np.add.reduce((self.values.astype(np.float64) / self.unit) ** self.power))
        if len(self.values) > FEW:
            wide = self.values.astype(np.float64)
            squares = float(wide.dot(wide))
        else:
            squares = sum(number * number for number in self.values.tolist())
        return _over(squares, self.unit * self.unit)


class Numbers:
    """The functions of the library, by the names of the array API."""

    float32 = np.float32
    inf = math.inf

    @staticmethod
    def astype(x: Any, dtype: Any, *, copy: bool = True) -> Any:
        """Return the array itself: there is one kind of number."""
        return x

    @staticmethod
    def where(condition: Number, x: Any, y: Any) -> Any:
        """Choose between two numbers."""
        chosen = x if condition.value else y
        return chosen if type(chosen) is Number else Number(chosen)

    @staticmethod
    def sqrt(x: Number) -> Number:
        """Take the square root; NaN of what is negative."""
        return Number(math.sqrt(x.value) if x.value >= 0 else math.nan)

    @staticmethod
    def tanh(x: Number) -> Number:
        """Take the hyperbolic tangent."""
        return Number(math.tanh(x.value))

    @staticmethod
    def abs(x: Number) -> Number:
        """Take the magnitude."""
        return Number(abs(x.value))

    @staticmethod
    def isfinite(x: Number) -> Number:
        """Tell whether it is a finite number."""
        return Number(math.isfinite(x.value))

    @staticmethod
    def maximum(x: Any, y: Any) -> Number:
        """Take the larger; NaN when one is."""
        a, b = float(x), float(y)
        return Number(a if a >= b or math.isnan(a) else b)

    @staticmethod
    def minimum(x: Any, y: Any) -> Number:
        """Take the smaller; NaN when one is."""
        a, b = float(x), float(y)
        return Number(a if a <= b or math.isnan(a) else b)

    @staticmethod
    def max(x: Vector, *, keepdims: bool = False) -> Number:
        """Take the largest; NaN when one is."""
        return Number(x.max())

    @staticmethod
    def sum(x: Vector, *, keepdims: bool = False) -> Number:
        """Add up."""
        return Number(x.sum())

    @staticmethod
    def ones_like(x: Any) -> Number:
        """Return a one."""
        return Number(1.0)

    @staticmethod
    def zeros_like(x: Any) -> Number:
        """Return a zero."""
        return Number(0.0)

    @staticmethod
    def full_like(x: Any, value: float) -> Number:
        """Return a number."""
        return Number(value)


def number_state(state: State) -> State:
    """Turn a state of arrays of one float32 into numbers of the same precision."""
    return {name: Number(float(np.float32(value[0]))) for name, value in state.items()}


def number_signals(loss: float | None, lr: float) -> Signals:
    """Make what a policy that decides by numbers may ask for beside the norms."""
    return Signals(loss=Number(math.nan if loss is None else loss), lr=Number(lr))


def decides_by_numbers(policy: AbstractPolicy) -> bool:
    """Whether a policy runs on numbers and then decides as on NumPy: where its state and factor are one number each.

    Tried, not guessed: what it does with a few norms has to be equal.
    """
    state = policy.init(2)
    if policy.needs - {"loss", "lr"} or any(len(value) != 1 for value in state.values()):
        return False
    numbers = number_state(state)
    given = Signals(loss=np.array([0.5], dtype=np.float32), lr=np.array([0.25], dtype=np.float32))
    for norm in _TRIAL:
        norms_P = np.array([norm, 0.5], dtype=np.float32)
        with np.errstate(all="ignore"):
            plain = policy(norms_P, state, given)
        try:
            quick = policy(Vector(norms_P), numbers, number_signals(0.5, 0.25))
            same = len(plain.scale) == len(quick.scale) == 1 and _same(plain, quick)
        except (AttributeError, TypeError, ArithmeticError, IndexError, ValueError):
            return False  # it uses what is not here
        if not same:
            return False
        state, numbers = plain.state, number_state(quick.state)
    return True


def _same(plain: Any, quick: Any) -> bool:
    pairs = [(plain.norm, quick.norm), (plain.scale, quick.scale), (plain.skip, quick.skip)]
    pairs += [(value, quick.state[name]) for name, value in plain.state.items()]
    return set(plain.state) == set(quick.state) and all(
        np.isclose(float(a[0]), float(b[0]), rtol=1e-4, equal_nan=True) for a, b in pairs
    )


def _plain(other: Any) -> Any:
    return other.value if type(other) is Number else other


def _over(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
