"""Checks of the numbers that policies are set with."""

import math

from evengrad.nouns import SettingError


def positive(name: str, value: object, *, infinite: bool = False) -> None:
    """Refuse what is not a positive number; infinity unless it is allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value > 0 or (math.isinf(value) and not infinite):  # type: ignore[operator,arg-type]
        raise SettingError(name, came=repr(value), wanted="a positive number" + ("" if infinite else ", finite"))
