"""The engine that a name means."""

from __future__ import annotations

from typing import Literal, get_args

from evengrad.nouns import SettingError, Task
from evengrad.trial._engine import AbstractEngine
from evengrad.trial._here import Here
from evengrad.trial._local import LocalProcesses
from evengrad.trial._shipped import can_be_shipped

Engine = Literal["auto", "local", "here", "ray"]


def engine_for(
    task: Task,
    engine: Engine,
    *,
    address: str | None = None,
    workers: int | None = None,
    memory_bytes: int | None = None,
    time_s: float | None = None,
) -> tuple[AbstractEngine, str]:
    """Make the engine that a name means, and a note for the report where it is not what one would expect.

    Args:
        task: What will run on it.
        engine: As in `repair`.
        address: Of a Ray cluster.
        workers: Of `local`.
        memory_bytes: Of `local`.
        time_s: Of `local`.

    Raises:
        SettingError: The name is unknown, a setting is for another engine, or the task cannot be sent to a process and
            has to be.
    """
    if engine not in get_args(Engine):
        raise SettingError("engine", came=repr(engine), wanted=f"one of {', '.join(get_args(Engine))}")
    if address is not None and engine != "ray":
        raise SettingError("address", came=repr(address), wanted="None", advice="an address goes with engine='ray'")
    limits = {"workers": workers, "memory_bytes": memory_bytes, "time_s": time_s}
    name = next((key for key, one in limits.items() if one is not None), None)
    if name is not None and engine not in {"auto", "local"}:
        raise SettingError(name, came=repr(limits[name]), wanted="None", advice="limits go with engine='local'")
    if engine == "here":
        return Here(), ""
    why = can_be_shipped(task)
    if why and engine != "auto":
        raise SettingError("engine", came=f"{engine!r} and a task that cannot be sent: {why}", wanted="'here'")
    if engine == "ray":
        from evengrad.trial._ray import OnRay

        return OnRay(address), ""
    if why:
        return Here(), f"Trials ran in this process, without limits of memory and time: {why}"
    return LocalProcesses(workers=workers, memory_bytes=memory_bytes, time_s=time_s), ""
