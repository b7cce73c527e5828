"""The files are plain Arrow: pyarrow, polars and DuckDB read the same numbers."""

import json
import math

import duckdb
import polars
import pyarrow as pa
import pyarrow.ipc
import pytest

from evengrad.nouns import Reading
from evengrad.runlog import Writer

READINGS = [
    Reading(step=0, loss=0.5, lrs=(0.1, 0.2), grad_norms=(3.0, 4.0), total_norm=5.0),
    Reading(step=1, loss=None, grad_norms=(), total_norm=math.inf, skipped=True, scale=0.25),
    Reading(step=2, loss=math.nan, lrs=(0.1,), grad_norms=(math.inf, 0.5), total_norm=1.0),
]


@pytest.fixture(params=["ended", "killed"])
def log(request, tmp_path, layers, weights, ends):
    with Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2) as writer:
        for reading in READINGS:
            writer.append(reading)
        writer.append(Reading(step=3, layers=layers, weights=weights, ends=ends, leftover=True))
    if request.param == "killed":
        for path in tmp_path.glob("*.arrows"):
            path.write_bytes(path.read_bytes()[:-8])
    return writer.path


def read_all(path):
    with path.open("rb") as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def check(columns):
    assert columns["step"] == [0, 1, 2, 3]
    assert columns["loss"][:2] == [0.5, None]
    assert math.isnan(columns["loss"][2])
    assert columns["total_norm"] == [5.0, math.inf, 1.0, None]
    assert columns["scale"] == [1.0, 0.25, 1.0, 1.0]
    assert columns["skipped"] == [False, True, False, False]
    assert columns["leftover"] == [None, None, None, True]
    assert columns["weights"] == columns["ends"] == [-1, -1, -1, 0]
    assert [list(row) for row in columns["lr"]] == [[0.1, 0.2], [], [0.1], []]
    assert [list(row) for row in columns["grad_norm"]] == [[3.0, 4.0], [None, None], [math.inf, 0.5], [None, None]]


def test_pyarrow_reads_the_same_numbers_and_names(log):
    table = read_all(log)
    check(table.to_pydict())
    assert table.schema.field("grad_norm").type == pa.list_(pa.float32(), 2)
    assert json.loads(table.schema.metadata[b"parameters"]) == ["w", "b"]


def test_pyarrow_reads_the_layers(log, layers):
    table = read_all(log.with_name(log.name.replace("steps", "layers-000")))
    columns = table.to_pydict()
    assert columns["step"] == [3]
    for name in ("numel", "grad_rms", "saturated_frac", "grad_finite", "zero_frac"):
        assert columns[name] == [[getattr(layer, name) for layer in layers]]
    assert columns["time_grad_rms"] == [[2.0**-60, 2.0**-30, 1.0]]
    assert columns["time_steps"] == [[0, 0, 3]]
    assert [layer["name"] for layer in json.loads(table.schema.metadata[b"layers"])] == [layer.name for layer in layers]


def test_pyarrow_reads_the_weights_and_the_ends(log, weights, ends):
    table = read_all(log.with_name(log.name.replace("steps", "weights-000")))
    columns = table.to_pydict()
    for name in ("weight_rms", "grad_rms", "update_ratio", "still_frac"):
        assert columns[name] == [[getattr(weight, name) for weight in weights]]
    fixed = [{"name": w.name, "numel": w.numel, "fan_in": w.fan_in, "dtype": w.dtype} for w in weights]
    assert json.loads(table.schema.metadata[b"weights"]) == fixed
    columns = read_all(log.with_name(log.name.replace("steps", "ends-000"))).to_pydict()
    plain = json.loads(columns["ends"][0])
    assert (columns["step"], plain["softmax_size"], plain["output"]["maximum"]) == ([3], 3, "inf")
    assert [tensor["std"] for tensor in plain["inputs"]] == [tensor.std for tensor in ends.inputs]


def test_polars_reads_the_same_numbers(log, layers):
    check(polars.read_ipc_stream(log).to_dict(as_series=False))
    columns = polars.read_ipc_stream(log.with_name(log.name.replace("steps", "layers-000"))).to_dict(as_series=False)
    assert [list(row) for row in columns["grad_rms"]] == [[layer.grad_rms for layer in layers]]
    assert [list(row) for row in columns["tracked"]] == [[layer.tracked for layer in layers]]
    frame = polars.read_ipc_stream(log.with_name(log.name.replace("steps", "ends-000")))
    assert frame.select(polars.col("ends").str.json_path_match("$.softmax_size")).to_series().to_list() == ["3"]


def test_duckdb_reads_numbers_out_of_the_ends(log, ends):
    path = log.with_name(log.name.replace("steps", "ends-000"))
    with path.open("rb") as file, duckdb.connect() as connection:
        connection.register("ends", pa.ipc.open_stream(file))
        rows = connection.execute("select step, cast(ends ->> '$.inputs[0].std' as double) from ends").fetchall()
    assert rows == [(3, ends.inputs[0].std)]


def test_duckdb_reads_the_same_numbers(log):
    names = ("step", "loss", "total_norm", "scale", "skipped", "leftover", "weights", "ends", "lr", "grad_norm")
    with log.open("rb") as file, duckdb.connect() as connection:
        connection.register("steps", pa.ipc.open_stream(file))
        rows = connection.execute(f"select {', '.join(names)} from steps order by step").fetchall()
    check({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
