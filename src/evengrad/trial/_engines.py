"""The engine that a name means."""

from __future__ import annotations

from typing import Literal, get_args

from evengrad.nouns import SettingError, Task
from evengrad.trial._engine import AbstractEngine
from evengrad.trial._here import Here

Engine = Literal["auto", "local", "here", "ray"]


def engine_for(task: Task, engine: Engine, *, address: str | None = None) -> tuple[AbstractEngine, str]:
    """Make the engine that a name means, and a note for the report where it is not what one would expect.

    Args:
        task: What will run on it.
        engine: As in `repair`.
        address: Of a Ray cluster.

    Raises:
        SettingError: The name is unknown, or an address came for another engine.
    """
    if engine not in get_args(Engine):
        raise SettingError("engine", came=repr(engine), wanted=f"one of {', '.join(get_args(Engine))}")
    if address is not None and engine != "ray":
        raise SettingError("address", came=repr(address), wanted="None", advice="an address goes with engine='ray'")
    return Here(), ""
