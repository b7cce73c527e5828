"""The steps file: one row per optimizer step."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evengrad.nouns import Reading
from evengrad.runlog._arrow import ANY_LENGTH, Column, Kind, Values
from evengrad.runlog._columns import lists, nullable, plain, plain_lists

NO_LAYERS = -1  # the step was not sampled
LOST_LAYERS = -2  # it was, but its layers could not be kept


def steps_columns(parameters: int, real: Kind) -> tuple[Column, ...]:
    """Lay out the columns; without parameters there are no gradient norms, as DuckDB has no lists of length zero."""
    return (
        Column(name="step", kind="int64"),
        Column(name="loss", kind="float64", nullable=True),
        Column(name="total_norm", kind="float64", nullable=True),
        Column(name="scale", kind="float64"),
        Column(name="skipped", kind="bool"),
        Column(name="lr", kind="float64", width=ANY_LENGTH),
        Column(name="layers", kind="int32"),
        *([Column(name="grad_norm", kind=real, width=parameters, nullable=True)] if parameters else []),
    )


def steps_facts(parameters: tuple[str, ...]) -> dict[str, str]:
    """Say what the columns cannot: the order of the parameters."""
    return {"format": "evengrad-steps", "version": "1", "parameters": json.dumps(parameters)}


def steps_batch(readings: list[Reading], layers: list[int], parameters: int, real: Kind) -> dict[str, Values]:
    """Turn readings into columns.

    Args:
        readings: The rows.
        layers: The number of the layers file that has the layers of each row; negative where there are none.
        parameters: How many parameters the run has.
        real: The kind of the gradient norms.
    """
    columns = {
        "step": Values(flat=np.array([reading.step for reading in readings], dtype=np.int64)),
        "loss": nullable([reading.loss for reading in readings], "float64"),
        "total_norm": nullable([reading.total_norm for reading in readings], "float64"),
        "scale": Values(flat=np.array([reading.scale for reading in readings], dtype=np.float64)),
        "skipped": Values(flat=np.array([reading.skipped for reading in readings], dtype=bool)),
        "lr": lists([reading.lrs for reading in readings], "float64"),
        "layers": Values(flat=np.array(layers, dtype=np.int32)),
    }
    if parameters:
        columns["grad_norm"] = _grad_norms(readings, parameters, real)
    return columns


def steps_rows(batch: Mapping[str, Values], rows: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Turn columns into the arguments of readings, each with the number of its layers file."""
    losses, totals = plain(batch["loss"]), plain(batch["total_norm"])
    scales, skipped, layers = plain(batch["scale"]), plain(batch["skipped"]), plain(batch["layers"])
    lrs, norms = plain_lists(batch["lr"]), _plain_grad_norms(batch.get("grad_norm"), rows)
    for row, step in enumerate(plain(batch["step"])):
        arguments = {
            "step": step,
            "loss": losses[row],
            "lrs": lrs[row],
            "grad_norms": norms[row],
            "total_norm": totals[row],
            "scale": scales[row],
            "skipped": skipped[row],
        }
        yield arguments, layers[row]


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
