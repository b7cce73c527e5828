"""A log of version 1, kept in `version1/` as it was written then, is still read, bit for bit, and can be continued."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evengrad.nouns import Reading
from evengrad.runlog import Writer, read

OLD = Path(__file__).with_name("version1")


@pytest.fixture
def old_readings(layers):
    linear, sigmoid, lstm = layers[0], layers[1], replace(layers[2], gate_stuck_frac=(), gate_mean=())
    changed = replace(sigmoid, numel=7, saturated_frac=None, output_finite=False)
    lr, inf = (0.1,), math.inf
    return (
        Reading(
            step=0,
            loss=0.1,
            lrs=(0.1, 1e-300),
            grad_norms=(1.5, 0.0),
            total_norm=0.3,
            scale=0.7,
            layers=(linear, sigmoid, lstm),
        ),
        Reading(step=1, skipped=True, scale=0.0),
        Reading(step=2, loss=inf, lrs=lr, grad_norms=(3.0, inf), total_norm=inf, layers=(linear, sigmoid)),
        Reading(step=3, loss=2.0, lrs=lr, grad_norms=(3.0, 4.0), total_norm=5.0, layers=(linear, changed, lstm)),
        Reading(step=4, loss=1.0, lrs=lr, grad_norms=(0.5, 0.25), total_norm=0.5625),
    )


def test_a_log_of_version_1_is_read_as_it_was_written(old_readings):
    record = read(OLD)
    assert record.readings == old_readings
    assert (record.parameters, record.dtype, record.setup) == (("w", "b"), "float32", None)
    assert (record.complete, record.note) == (True, "")


def test_reading_a_log_of_version_1_leaves_its_bytes_alone(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    read(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == {
        path.name: path.read_bytes() for path in OLD.iterdir()
    }


def test_a_run_of_version_1_that_is_continued_becomes_version_2_and_keeps_its_facts_and_files(
    tmp_path, old_readings, make
):
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    new = tuple(make(5, 8, sample=2))
    with Writer(run, parameters=("w", "b")) as log:
        for reading in new:
            log.append(reading)
    assert log.path.name == "rank00000-0002.steps.arrows"
    assert read(run).readings == old_readings + new
    before = json.loads((OLD / "meta.json").read_text())
    assert json.loads((run / "meta.json").read_text()) == before | {"version": 2}
    for path in OLD.glob("*.arrows"):
        assert (run / path.name).read_bytes() == path.read_bytes()
