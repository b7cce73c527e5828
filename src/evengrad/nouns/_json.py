"""Nouns as strict JSON and back: non-finite numbers are strings, unknown keys are ignored, sizes are limited."""

import json
import math
import types
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from evengrad.nouns._errors import RunLogError

Noun = TypeVar("Noun")

LONGEST_TEXT = 100_000  # characters of one string; names and messages stay far below
LONGEST_JSON = 256 * 1024 * 1024  # characters of one document


def to_plain(value: object) -> Any:
    """Turn a noun into what `json.dumps(..., allow_nan=False)` takes.

    Example:
        >>> from evengrad.nouns import Evidence
        >>> to_plain(Evidence(name="loss", value=float("nan")))
        {'name': 'loss', 'value': 'nan', 'unit': ''}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def to_json(noun: object) -> str:
    """Write a noun as one line of JSON."""
    return json.dumps(to_plain(noun), allow_nan=False, ensure_ascii=False)


def from_json(kind: type[Noun], text: str, *, where: str) -> Noun:
    """Read a noun back.

    Args:
        kind: The class of the noun.
        text: What `to_json` wrote.
        where: The file, for the error.

    Raises:
        RunLogError: The text is not such a noun.
    """
    try:
        if len(text) > LONGEST_JSON:
            raise ValueError(f"{len(text)} characters, more than {LONGEST_JSON}")
        noun: Noun = _build(kind, json.loads(text))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as err:
        raise RunLogError(
            where, came=f"{type(err).__name__}: {err}"[:200], wanted=f"a {kind.__name__} as JSON"
        ) from err
    return noun


@cache  # a pure function of the class, and most of the time that reading takes
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, plain: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(plain, dict):
            raise TypeError(f"{kind.__name__} from {type(plain).__name__}")
        return kind(**{name: _build(hint, plain[name]) for name, hint in _hints(kind).items() if name in plain})
    origin = get_origin(kind)
    if origin is tuple:
        return _build_tuple(get_args(kind), plain)
    if origin in {Union, types.UnionType}:
        return _build_union(get_args(kind), plain)
    if origin is Literal:
        if plain not in get_args(kind):
            raise ValueError(f"{plain!r} is none of {get_args(kind)}")
        return plain
    if kind is float and isinstance(plain, str | int | float) and not isinstance(plain, bool):
        return float(plain)
    if isinstance(plain, str) and len(plain) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(plain)} characters, more than {LONGEST_TEXT}")
    if not isinstance(plain, kind) or (kind is int and isinstance(plain, bool)):
        raise TypeError(f"{kind.__name__} from {type(plain).__name__}")
    return plain


def _build_tuple(args: tuple[Any, ...], plain: Any) -> tuple[Any, ...]:
    if not isinstance(plain, list):
        raise TypeError(f"tuple from {type(plain).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_build(args[0], item) for item in plain)
    if len(args) != len(plain):
        raise ValueError(f"{len(plain)} items, want {len(args)}")
    return tuple(_build(arg, item) for arg, item in zip(args, plain, strict=True))


def _build_union(args: tuple[Any, ...], plain: Any) -> Any:
    if plain is None and type(None) in args:
        return None
    for arg in sorted(args, key=lambda option: type(plain) is not option):  # the exact type first: 1 stays an int
        if arg is not type(None):
            try:
                return _build(arg, plain)
            except (TypeError, ValueError):
                continue
    raise TypeError(f"{type(plain).__name__} is none of {args}")
