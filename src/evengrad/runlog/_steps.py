"""The steps file: one row per optimizer step."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evengrad.nouns import Reading
from evengrad.runlog._arrow import ANY_LENGTH, Column, Kind, Values
from evengrad.runlog._columns import lists, nullable, plain, plain_lists

NONE = -1  # the step was not sampled
LOST = -2  # it was, but what was sampled could not be kept

VERSION = 2  # 1 has no weights, ends and leftover
SAMPLED = ("layers", "weights", "ends")  # fields of `Reading` in tables of their own; here the numbers of their files


def steps_columns(parameters: int, real: Kind, version: int = VERSION) -> tuple[Column, ...]:
    """Lay out the columns; without parameters there are no gradient norms, as DuckDB has no lists of length zero."""
    return (
        Column(name="step", kind="int64"),
        Column(name="loss", kind="float64", nullable=True),
        Column(name="total_norm", kind="float64", nullable=True),
        Column(name="scale", kind="float64"),
        Column(name="skipped", kind="bool"),
        *([Column(name="leftover", kind="bool", nullable=True)] if version > 1 else []),
        Column(name="lr", kind="float64", width=ANY_LENGTH),
        *(Column(name=name, kind="int32") for name in (SAMPLED if version > 1 else SAMPLED[:1])),
        *([Column(name="grad_norm", kind=real, width=parameters, nullable=True)] if parameters else []),
    )


def steps_facts(parameters: tuple[str, ...], version: int = VERSION) -> dict[str, str]:
    """Say what the columns cannot: the order of the parameters."""
    return {"format": "evengrad-steps", "version": str(version), "parameters": json.dumps(parameters)}


def steps_columns_of(facts: Mapping[str, str], parameters: tuple[str, ...], real: Kind) -> tuple[Column, ...]:
    """Lay out the columns of a file with this header; ValueError when it is none of this run."""
    for version in range(1, VERSION + 1):
        if facts == steps_facts(parameters, version):
            return steps_columns(len(parameters), real, version)
    raise ValueError("steps of another run")


def steps_batch(
    readings: list[Reading], files: Mapping[str, list[int]], parameters: int, real: Kind
) -> dict[str, Values]:
    """Turn readings into columns.

    Args:
        readings: The rows.
        files: For each field in `SAMPLED`, the number of the file that has it for each row; negative for none.
        parameters: How many parameters the run has.
        real: The kind of the gradient norms.
    """
    columns = {
        "step": Values(flat=np.array([reading.step for reading in readings], dtype=np.int64)),
        "loss": nullable([reading.loss for reading in readings], "float64"),
        "total_norm": nullable([reading.total_norm for reading in readings], "float64"),
        "scale": Values(flat=np.array([reading.scale for reading in readings], dtype=np.float64)),
        "skipped": Values(flat=np.array([reading.skipped for reading in readings], dtype=bool)),
        "leftover": nullable([reading.leftover for reading in readings], "bool"),
        "lr": lists([reading.lrs for reading in readings], "float64"),
        **{name: Values(flat=np.array(files[name], dtype=np.int32)) for name in SAMPLED},
    }
    if parameters:
        columns["grad_norm"] = _grad_norms(readings, parameters, real)
    return columns


def steps_rows(batch: Mapping[str, Values], rows: int) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
    """Turn columns into the arguments of readings, each with the numbers of the files of what was sampled."""
    names = ("step", "loss", "total_norm", "scale", "skipped", "leftover")
    columns = {name: plain(batch[name]) for name in names if name in batch}
    columns |= {"lrs": plain_lists(batch["lr"]), "grad_norms": _plain_grad_norms(batch.get("grad_norm"), rows)}
    files = _files(batch, rows)
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        yield dict(zip(columns, values, strict=True)), files[row]


def _files(batch: Mapping[str, Values], rows: int) -> list[dict[str, int]]:
    found: list[dict[str, int]] = [{} for _ in range(rows)]
    for name in SAMPLED:
        if name in batch:
            for row in np.flatnonzero(batch[name].flat != NONE).tolist():
                found[row][name] = int(batch[name].flat[row])
    return found


def _grad_norms(readings: list[Reading], parameters: int, real: Kind) -> Values:
    flat = np.zeros((len(readings), parameters), dtype=real)
    measured = np.array([bool(reading.grad_norms) for reading in readings], dtype=bool)
    if measured.any():
        with np.errstate(over="ignore"):
            flat[measured] = [reading.grad_norms for reading in readings if reading.grad_norms]
    missing = None if measured.all() else np.repeat(~measured, parameters)
    return Values(flat=flat.reshape(-1), missing=missing)


def _plain_grad_norms(values: Values | None, rows: int) -> list[tuple[float, ...]]:
    if values is None:
        return [()] * rows
    table = values.flat.reshape(rows, -1).tolist()
    if values.missing is None:
        return [tuple(row) for row in table]
    missing: list[bool] = np.any(values.missing.reshape(rows, -1), axis=1).tolist()
    return [() if not_there else tuple(row) for row, not_there in zip(table, missing, strict=True)]
