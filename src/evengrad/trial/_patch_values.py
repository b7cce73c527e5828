"""A setting of a task as Python."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from evengrad import clip
from evengrad.trial._patch_source import NoPatchError


def written(value: Any) -> tuple[str, bool]:
    """Write a number, a word, None, or a clip policy; and tell whether `evengrad` must be imported for it.

    Raises:
        NoPatchError: It is something else.

    Example:
        >>> written(0.5), written(clip.ByGlobalNorm(1.0))
        (('0.5', False), ('evengrad.clip.ByGlobalNorm(max_norm=1.0)', True))
    """
    if value is None or isinstance(value, str | int | float):
        return repr(value), False
    kind = type(value)
    if not is_dataclass(value) or isinstance(value, type) or getattr(clip, kind.__name__, None) is not kind:
        raise NoPatchError(f"{kind.__name__} cannot be written into a call")
    words = []
    for one in fields(value):
        setting = getattr(value, one.name)
        if one.default is not MISSING and setting == one.default:
            continue
        if one.init:
            words.append(f"{one.name}={written(setting)[0]}")
    return f"evengrad.clip.{kind.__name__}({', '.join(words)})", True
