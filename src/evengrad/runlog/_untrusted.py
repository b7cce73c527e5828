"""Nouns from texts in a file that anybody may have written."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TypeVar

from evengrad.nouns import RunLogError, SettingError, Setup, from_json, to_json

Noun = TypeVar("Noun")

SETUP = "setup"  # among the facts of a run, as JSON

_LARGEST = 2**63


def noun_of(kind: type[Noun], text: str | None) -> Noun | None:
    """Read a noun; None when the text is none, or has whole numbers beyond 64 bits, which floats may not hold."""
    try:
        noun = from_json(kind, text or "", where=kind.__name__)
    except RunLogError:
        return None
    return noun if _within_64_bits(noun) else None


def facts_with(setup: Setup | None, facts: Mapping[str, str]) -> dict[str, str]:
    """Put the set-up among the facts.

    Raises:
        SettingError: It is there twice, or could not be read back.
    """
    if setup is None and SETUP not in facts:
        return dict(facts)
    if setup is not None and SETUP in facts:
        raise SettingError("setup", came="one, and another among the facts", wanted="one of them")
    text = facts[SETUP] if setup is None else to_json(setup)
    if not isinstance(text, str) or noun_of(Setup, text) is None:
        raise SettingError("setup", came=repr(text)[:100], wanted="a Setup, or its JSON among the facts")
    return {**facts, SETUP: text}


def setup_of(facts: Mapping[str, str]) -> tuple[Setup | None, str]:
    """Read the set-up from the facts; and say what is wrong with it, in words."""
    if SETUP not in facts:
        return None, ""
    setup = noun_of(Setup, facts[SETUP])
    return setup, "" if setup is not None else "the set-up in meta.json cannot be read"


def _within_64_bits(value: object) -> bool:
    if isinstance(value, int):
        return -_LARGEST <= value < _LARGEST
    if isinstance(value, tuple):
        return all(map(_within_64_bits, value))
    return not is_dataclass(value) or all(_within_64_bits(getattr(value, field.name)) for field in fields(value))
