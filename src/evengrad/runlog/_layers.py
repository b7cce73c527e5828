"""The layers files: one row per sampled step, one column per statistic, one file per set of layers."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evengrad.nouns import LayerReading
from evengrad.runlog._arrow import ANY_LENGTH, Column, Kind, Values
from evengrad.runlog._columns import lists, nullable, plain, plain_lists, real_array

# What names a set of layers; everything else may change from step to step, as a batch may be of another size.
FIXED = ("name", "kind", "weighted", "nonlinearity")
COUNTS = ("numel", "units", "observations")
REALS = ("activation_rms", "activation_absmax", "zero_frac", "dead_frac")
OPTIONAL = ("saturated_frac", "grad_rms", "weight_norm", "weight_grad_norm")
FLAGS = ("input_finite", "output_finite", "grad_finite")

Layers = tuple[tuple[str, str, bool, str | None], ...]


def layer_set(layers: tuple[LayerReading, ...]) -> Layers:
    """Name a set of layers, so that two steps with the same set share a file."""
    return tuple((layer.name, layer.kind, layer.weighted, layer.nonlinearity) for layer in layers)


def layers_columns(width: int, real: Kind) -> tuple[Column, ...]:
    """Lay out the columns for so many layers."""
    return (
        Column(name="step", kind="int64"),
        *(Column(name=name, kind="int64", width=width) for name in COUNTS),
        *(Column(name=name, kind=real, width=width) for name in REALS),
        *(Column(name=name, kind=real, width=width, nullable=True) for name in OPTIONAL),
        *(Column(name=name, kind="bool", width=width) for name in FLAGS),
        Column(name="time_grad_rms", kind=real, width=ANY_LENGTH),
        Column(name="time_steps", kind="int32", width=width),  # how many of time_grad_rms belong to each layer
    )


def layers_facts(layers: Layers) -> dict[str, str]:
    """Say what the columns cannot: which layer is which, in the order of every list."""
    fixed = [dict(zip(FIXED, layer, strict=True)) for layer in layers]
    return {"format": "evengrad-layers", "version": "1", "layers": json.dumps(fixed)}


def layers_of(facts: Mapping[str, str]) -> Layers:
    """Read the set of layers back.

    Raises:
        ValueError: The header is of something else.
    """
    try:
        fixed = json.loads(facts.get("layers", ""))
        layers = tuple((layer["name"], layer["kind"], layer["weighted"], layer["nonlinearity"]) for layer in fixed)
    except (TypeError, KeyError, RecursionError) as err:
        raise ValueError("not a set of layers") from err
    for name, kind, weighted, nonlinearity in layers:
        if not (isinstance(name, str) and isinstance(kind, str) and isinstance(weighted, bool)):
            raise ValueError("not a layer")
        if not isinstance(nonlinearity, str | None):
            raise ValueError("not a non-linearity")
    if not layers:
        raise ValueError("no layers")
    return layers


def layers_batch(rows: list[tuple[int, tuple[LayerReading, ...]]], real: Kind) -> dict[str, Values]:
    """Turn the layers of some steps into columns."""
    flat = [layer for _, layers in rows for layer in layers]
    columns = {"step": Values(flat=np.array([step for step, _ in rows], dtype=np.int64))}
    for name in COUNTS:
        columns[name] = Values(flat=np.array([getattr(layer, name) for layer in flat], dtype=np.int64))
    for name in REALS:
        columns[name] = Values(flat=real_array([getattr(layer, name) for layer in flat], real))
    for name in OPTIONAL:
        columns[name] = nullable([getattr(layer, name) for layer in flat], real)
    for name in FLAGS:
        columns[name] = Values(flat=np.array([getattr(layer, name) for layer in flat], dtype=bool))
    times = [[number for layer in layers for number in layer.time_grad_rms] for _, layers in rows]
    columns["time_grad_rms"] = lists(times, real)
    columns["time_steps"] = Values(flat=np.array([len(layer.time_grad_rms) for layer in flat], dtype=np.int32))
    return columns


def layers_rows(batch: Mapping[str, Values], layers: Layers) -> Iterator[tuple[int, tuple[LayerReading, ...]]]:
    """Turn columns into steps and their layers."""
    table = {name: plain(batch[name]) for name in (*COUNTS, *REALS, *OPTIONAL, *FLAGS)}
    fixed = [dict(zip(FIXED, layer, strict=True)) for layer in layers]
    lengths, width = batch["time_steps"].flat.tolist(), len(layers)
    for row, (step, times) in enumerate(zip(plain(batch["step"]), plain_lists(batch["time_grad_rms"]), strict=True)):
        begin = row * width
        own_times = _split(times, lengths[begin : begin + width])
        yield (
            step,
            tuple(
                _layer(fixed[i], {name: values[begin + i] for name, values in table.items()}, own_times[i])
                for i in range(width)
            ),
        )


def _layer(fixed: dict[str, Any], numbers: dict[str, Any], times: tuple[float, ...]) -> LayerReading:
    return LayerReading(**fixed, **numbers, time_grad_rms=times)


def _split(numbers: tuple[float, ...], lengths: list[int]) -> list[tuple[float, ...]]:
    parts, begin = [], 0
    for length in lengths:
        parts.append(numbers[begin : begin + length])
        begin += length
    return parts
