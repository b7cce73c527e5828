"""Checks of the numbers that policies are set with, and of what they are handed."""

import math

from evengrad.clip._policy import Array, Signals
from evengrad.nouns import SettingError

_LARGEST = 1e38  # what float32 holds, in which policies reckon
_SMALLEST = 1e-37


def positive(name: str, value: object, *, infinite: bool = False) -> None:
    """Refuse what is not a positive number that float32 holds; infinity unless it is allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    held = number and (_SMALLEST <= value <= _LARGEST or (infinite and value == math.inf))  # type: ignore[operator]
    if not held:
        raise SettingError(name, came=repr(value), wanted="a positive number" + ("" if infinite else ", finite"))


def not_negative(name: str, value: object) -> None:
    """Refuse what is neither 0 nor a positive finite number."""
    if isinstance(value, bool) or value != 0:
        try:
            positive(name, value)
        except SettingError as err:
            raise SettingError(name, came=repr(value), wanted="0 or a positive number, finite") from err


def inside(name: str, value: object, least: float, most: float) -> None:
    """Refuse what is not a number strictly between two."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < most:
        raise SettingError(name, came=repr(value), wanted=f"a number in ({least:g}, {most:g})")


def whole(name: str, value: object, *, least: int = 1, most: int = 2**24) -> None:
    """Refuse what is not a whole number between two; float32 counts up to 2^24."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        kind = "a positive whole number" if least == 1 else f"a whole number, at least {least}"
        raise SettingError(name, came=repr(value), wanted=kind + ("" if most == 2**24 else f", at most {most}"))


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of some words."""
    if value not in choices:
        raise SettingError(name, came=repr(value), wanted=" or ".join(map(repr, choices)))


def true_or_false(name: str, value: object) -> None:
    """Refuse what is not a bool."""
    if not isinstance(value, bool):
        raise SettingError(name, came=repr(value), wanted="True or False")


def handed(signals: Signals, name: str) -> Array:
    """Take a signal that a policy cannot decide without.

    Raises:
        SettingError: Nobody handed it over.
    """
    value = getattr(signals, name)
    if value is None:
        advice = f"hand it over: policy(norms, state, Signals({name}=...))"
        raise SettingError(f"signals.{name}", came="None", wanted="a number per parameter", advice=advice)
    return value
