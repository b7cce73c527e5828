"""A guard's memory as plain data that `torch.load(weights_only=True)` reads, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evengrad.clip import AbstractPolicy
from evengrad.clip.transforms import AbstractTransform
from evengrad.guard._program import Part, Program, plain
from evengrad.nouns import SettingError

VERSION = 1
COUNTS = ("step", "skips", "skips_in_row", "clips", "rollbacks")

Memory = dict[str, Tensor]


def packed(program: Program, counts: Mapping[str, int], lr_factor: float) -> dict[str, Any]:
    """Turn the memory into numbers, strings, tensors, dicts and lists; the tensors are copies."""
    return {
        "version": VERSION,
        "parameters": program.names,
        "shapes": [list(parameter.shape) for parameter in program.parameters],
        "parts": [
            {"kind": type(part).__name__, "settings": repr(part), "memory": {k: plain(v) for k, v in state.items()}}
            for part, state in zip(program.parts, program.states, strict=True)
        ],
        "lr_factor": lr_factor,
        **{name: int(counts[name]) for name in COUNTS},
    }


def unpacked(saved: Mapping[str, Any], program: Program) -> tuple[list[Any], dict[str, int], float]:
    """Read a memory back for a program: its states, the counts, and the factor of the learning rate.

    Raises:
        SettingError: It is of another version, of other policies or of another model, or it is no guard's state.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("version"), int):
        raise _wrong(f"a {type(saved).__name__} without a version")
    if saved["version"] > VERSION:
        raise _wrong(f"version {saved['version']}", f"version {VERSION} or older", "install a newer evengrad")
    try:
        parts, old_names = list(saved["parts"]), [str(name) for name in saved["parameters"]]
        kinds, own = [str(part["kind"]) for part in parts], [type(part).__name__ for part in program.parts]
        if kinds != own:
            raise _wrong(f"the state of {' and '.join(kinds) or 'nothing'}", f"the state of {' and '.join(own)}")
        if not set(old_names) & set(program.names):
            raise _wrong(f"the state of another model, with {_few(old_names)}", f"one with {_few(program.names)}")
        shapes = dict(zip(old_names, (tuple(shape) for shape in saved["shapes"]), strict=True))
        for name, parameter in zip(program.names, program.parameters, strict=True):
            if shapes.get(name, tuple(parameter.shape)) != tuple(parameter.shape):
                other = f"the state of another model, where {name} has the shape {shapes[name]}"
                raise _wrong(other, f"one with {tuple(parameter.shape)}")
        loaded = [{str(key): _tensor(value) for key, value in part["memory"].items()} for part in parts]
        states = carried(loaded, old_names, program)
        counts = {name: int(saved[name]) for name in COUNTS}
        return states, counts, float(saved["lr_factor"])
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        if isinstance(err, SettingError):
            raise
        raise _wrong(f"{type(err).__name__}: {err}") from err


def carried(states: Sequence[Any], old_names: Sequence[str], program: Program) -> list[Any]:
    """Carry states over to a program for other parameters, by name; a new parameter starts as at the first step.

    Args:
        states: One for each part of the program.
        old_names: The parameters that they are for.
        program: The new one, just made.

    Raises:
        ValueError: A state has other arrays than the part has, or of other lengths.
    """
    result: list[Any] = []
    for part, old, start in zip(program.parts, states, program.states, strict=True):
        if isinstance(part, AbstractTransform):
            result.append(_transform_memory(part, old, start))
        else:
            result.append(_policy_state(part, old, old_names, start, program))
    return result


def _policy_state(
    policy: AbstractPolicy, old: Any, old_names: Sequence[str], start: Any, program: Program
) -> dict[str, Any]:
    """Carry arrays for the whole model as they are, and those with a number for each parameter by name."""
    two, three = policy.init(2), policy.init(3)
    each = {key for key in two if len(two[key]) != len(three[key])}
    places = {name: place for place, name in enumerate(old_names)}
    names, like = program.names, program.like
    if set(old) != set(start):
        raise ValueError(f"arrays called {sorted(old)}, not {sorted(start)}")
    result: dict[str, Any] = {}
    for key, fresh in start.items():
        values = plain(old[key]).numpy().astype(np.float32)
        wanted = len(old_names) if key in each else len(fresh)
        if values.ndim != 1 or len(values) != wanted:
            raise ValueError(f"{key} has the shape {values.shape}, not {(wanted,)}")
        if key in each:
            first = plain(fresh).numpy()
            found = [values[places[name]] if name in places else first[at] for at, name in enumerate(names)]
            values = np.asarray(found, dtype=np.float32)
        result[key] = values if like is None else torch.from_numpy(values).to(like.device)
    return result


def _transform_memory(part: Part, old: Any, start: Any) -> Memory:
    """Carry what is there by name; every tensor must be of the shape that it starts with."""
    result: Memory = {**{key: value.clone() for key, value in old.items() if ":" in key}, **start}
    for key, fresh in start.items():
        value = old.get(key)
        if value is None:
            if ":" not in key:
                raise ValueError(f"{type(part).__name__} has no {key}")
            continue
        if value.shape != fresh.shape:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(fresh.shape)}")
        result[key] = value.to(fresh.device, fresh.dtype, copy=True)
    return result


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} where a tensor should be")
    return value.detach()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _wrong(came: str, wanted: str = "what Guard.state_dict() returned", advice: str = "") -> SettingError:
    return SettingError("state_dict", came=came, wanted=wanted, advice=advice)
