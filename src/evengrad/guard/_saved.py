"""A guard's memory as plain data that `torch.load(weights_only=True)` reads, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evengrad.clip import AbstractPolicy, State
from evengrad.nouns import SettingError

VERSION = 1
COUNTS = ("step", "skips", "skips_in_row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a guard remembers from step to step."""

    policy: AbstractPolicy
    names: Sequence[str]
    state: State
    step: int
    skips: int
    skips_in_row: int


def packed(memory: Memory) -> dict[str, Any]:
    """Turn the memory into numbers, strings, tensors, dicts and lists; the tensors are copies."""
    return {
        "version": VERSION,
        "policy": type(memory.policy).__name__,
        "settings": repr(memory.policy),
        "parameters": list(memory.names),
        "state": {key: torch.tensor(np.asarray(value)) for key, value in memory.state.items()},
        **{name: getattr(memory, name) for name in COUNTS},
    }


def unpacked(saved: Mapping[str, Any], policy: AbstractPolicy, names: Sequence[str]) -> Memory:
    """Read a memory back for a policy and parameters.

    Raises:
        SettingError: It is of a newer version or of another policy, or it is no guard's state.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("version"), int):
        raise _wrong(f"a {type(saved).__name__} without a version")
    if saved["version"] > VERSION:
        raise _wrong(f"version {saved['version']}", f"version {VERSION} or older", "install a newer evengrad")
    if saved.get("policy") != type(policy).__name__:
        raise _wrong(f"the state of {saved.get('policy')}", f"the state of {type(policy).__name__}")
    try:
        loaded = {key: _vector(value) for key, value in saved["state"].items()}
        state = carried(loaded, list(saved["parameters"]), policy, names)
        counts = {name: int(saved[name]) for name in COUNTS}
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise _wrong(f"{type(err).__name__}: {err}") from err
    return Memory(policy=policy, names=names, state=state, **counts)


def carried(state: State, old_names: Sequence[str], policy: AbstractPolicy, names: Sequence[str]) -> State:
    """Carry a state over to other parameters: arrays for the whole model as they are, the others by name.

    Args:
        state: The state to carry over.
        old_names: The parameters that it was for.
        policy: The policy whose state it is.
        names: The new parameters; one that is not among the old starts as at the first step.
    """
    # With two parameters a length tells what an array is for; with one it does not.
    each = {key for key, start in policy.init(2).items() if len(start) == 2}
    places = {name: place for place, name in enumerate(old_names)}
    result = {}
    for key, start in policy.init(len(names)).items():
        old = np.asarray(state[key])
        if len(old) != (len(old_names) if key in each else len(start)):
            raise ValueError(f"{key} has {len(old)} numbers for {len(old_names)} parameters")
        if key in each:
            values = [old[places[name]] if name in places else start[at] for at, name in enumerate(names)]
            old = np.asarray(values, dtype=np.float32)
        result[key] = old.copy()
    return result


def _vector(value: Tensor) -> np.ndarray:
    array = np.array(value.detach().cpu().numpy(), dtype=np.float32)
    if array.ndim != 1:
        raise ValueError(f"a state of {array.ndim} dimensions")
    return array


def _wrong(came: str, wanted: str = "what Guard.state_dict() returned", advice: str = "") -> SettingError:
    return SettingError("state_dict", came=came, wanted=wanted, advice=advice)
