"""What is written comes back."""

import gc
import logging
import math
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evengrad.nouns import LayerReading, Reading, RunLogError, SettingError
from evengrad.runlog import Writer, is_run, read

INF, NAN = math.inf, math.nan


def test_every_field_of_a_reading_comes_back(tmp_path, layers, same):
    readings = [
        Reading(step=0, loss=0.1, lrs=(0.1, 1e-300), grad_norms=(1.5, 0.0), total_norm=0.3, scale=0.7, layers=layers),
        Reading(step=1, loss=None, lrs=(), grad_norms=(), total_norm=None, scale=0.0, skipped=True),
        Reading(step=2**62, loss=NAN, lrs=(NAN, INF), grad_norms=(NAN, INF), total_norm=INF, scale=NAN),
        Reading(step=2**62 + 1, loss=-INF, grad_norms=(2.0**-149, 2.0**127), layers=layers[:1]),
    ]
    with Writer(tmp_path / "a" / "run", parameters=("w", "b")) as log:
        for reading in readings:
            log.append(reading)
    record = read(tmp_path / "a" / "run")
    assert record.parameters == ("w", "b")
    assert (record.complete, record.note) == (True, "")
    assert same(record.readings, tuple(readings))


@pytest.mark.parametrize("name", [field.name for field in fields(LayerReading)])
def test_every_field_of_a_layer_comes_back(tmp_path, layers, same, name):
    others = {
        "name": "другой",
        "kind": "Other",
        "weighted": False,
        "nonlinearity": "tanh",
        "input_finite": False,
        "output_finite": False,
        "grad_finite": False,
        "numel": 2**40,
        "units": 7,
        "observations": 9,
        "time_grad_rms": (NAN, INF, 0.5),
        "training": False,
        "tracked": 2**60 + 1,
        "gate_stuck_frac": (0.0, 0.25),
        "gate_mean": (NAN, 0.5, 0.25),
        "after": ("body.1", "другой#2"),
        "gate": True,
    }
    changed = [replace(layers[0], **{name: others.get(name, value)}) for value in (NAN, INF, 0.375)]
    if name in {"saturated_frac", "grad_rms", "weight_norm", "weight_grad_norm", "tracked", "logit_absmax", "after"}:
        changed.append(replace(layers[0], **{name: None}))
    with Writer(tmp_path, parameters=()) as log:
        for step, layer in enumerate(changed):
            log.append(Reading(step=step, layers=(layer, layers[1])))
    assert same(tuple(reading.layers for reading in read(tmp_path).readings), tuple((c, layers[1]) for c in changed))


def test_a_statistic_too_large_for_float32_becomes_infinite_and_the_total_does_not(tmp_path):
    with Writer(tmp_path, parameters=("w",)) as log:
        log.append(Reading(grad_norms=(1e39,), total_norm=1e39))
    reading = read(tmp_path).readings[0]
    assert (reading.grad_norms, reading.total_norm) == ((INF,), 1e39)


def test_a_run_in_float64_keeps_its_range(tmp_path, layers):
    with Writer(tmp_path, parameters=("w",), dtype="float64") as log:
        log.append(Reading(grad_norms=(1e-200,), layers=(replace(layers[0], grad_rms=1e-100),)))
    reading = read(tmp_path).readings[0]
    assert (reading.grad_norms, reading.layers[0].grad_rms) == ((1e-200,), 1e-100)
    assert read(tmp_path).dtype == "float64"


optional = st.none() | st.floats(width=64)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(optional, optional, st.lists(st.floats(), max_size=3), st.booleans()), max_size=6),
    every=st.integers(1, 4),
)
def test_any_numbers_come_back_in_any_batches(tmp_path_factory, same, rows, every):
    directory = tmp_path_factory.mktemp("run")
    readings = tuple(
        Reading(step=step, loss=loss, total_norm=total, lrs=tuple(lrs), skipped=skipped)
        for step, (loss, total, lrs, skipped) in enumerate(rows)
    )
    with Writer(directory, parameters=("w",), flush_every_steps=every) as log:
        for reading in readings:
            log.append(reading)
    assert same(read(directory).readings, readings)


def test_a_changed_set_of_layers_opens_the_next_file_and_an_old_set_returns_to_its_own(tmp_path, layers):
    sets = [layers, layers[:2], layers, (replace(layers[0], name="renamed"),), layers[:2], ()]
    with Writer(tmp_path, parameters=(), flush_every_steps=2) as log:
        for step, some in enumerate(sets):
            log.append(Reading(step=step, layers=some))
    assert [reading.layers for reading in read(tmp_path).readings] == sets
    files = sorted(path.name for path in tmp_path.glob("*layers*"))
    assert files == [f"rank00000-0000.layers-00{number}.arrows" for number in range(3)]


def test_too_many_sets_of_layers_cost_layers_but_no_steps_and_are_said(tmp_path, layers, caplog):
    with Writer(tmp_path, parameters=()) as log:
        for step in range(103):
            log.append(Reading(step=step, layers=(replace(layers[0], name=f"layer {step}"),)))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    record = read(tmp_path)
    assert len(record.readings) == 103
    assert (record.complete, record.note) == (False, "the layers of 3 sampled steps, from 100 to 102, are not there")


def test_a_batch_is_written_when_it_is_full_or_old(tmp_path, make):
    now_s = [0.0]
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=3, flush_every_s=2.0, clock=lambda: now_s[0])
    seen = []
    for step, time_s in enumerate([0.0, 0.1, 0.2, 0.3, 2.1, 2.2, 2.3, 4.2]):
        now_s[0] = time_s
        log.append(make(step, step + 1)[0])
        seen.append(len(read(tmp_path, live=True).readings))
    assert seen == [0, 0, 3, 3, 3, 6, 6, 8]  # 3 and 6: full; 8: two seconds after the last
    log.close()


def test_a_repeated_step_counts_as_it_was_last(tmp_path, make, layers):
    with Writer(tmp_path, parameters=("w", "b")) as log:
        for reading in [*make(0, 6, sample=2), *make(3, 5, loss=0.25)]:
            log.append(reading)
    readings = read(tmp_path).readings
    assert [reading.step for reading in readings] == list(range(6))
    assert [reading.loss for reading in readings] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.5]
    assert [bool(reading.layers) for reading in readings] == [True, False, True, False, False, False]


def test_ranks_are_kept_apart(tmp_path, make):
    for rank in (0, 3):
        with Writer(tmp_path, parameters=("w", "b"), rank=rank) as log:
            log.append(make(rank, rank + 1)[0])
    assert [reading.step for reading in read(tmp_path, rank=3).readings] == [3]
    assert [reading.step for reading in read(tmp_path).readings] == [0]
    with pytest.raises(RunLogError, match="rank: got 7, want one of 0, 3"):
        read(tmp_path, rank=7)


def test_a_run_without_readings_says_so(tmp_path):
    Writer(tmp_path / "empty", parameters=()).close()
    assert read(tmp_path / "empty").complete
    (tmp_path / "empty" / "rank00000-0000.steps.arrows").unlink()
    assert read(tmp_path / "empty").note == "the run has no readings"


def test_closing_twice_is_once_and_appending_afterwards_is_an_error(tmp_path, make):
    log = Writer(tmp_path, parameters=("w", "b"))
    log.append(make(0, 1)[0])
    log.close()
    size = log.path.stat().st_size
    log.close()
    log.flush()
    assert log.path.stat().st_size == size
    with pytest.raises(RunLogError, match="closed run log"):
        log.append(make(1, 2)[0])


def test_an_exception_closes_the_log_and_says_that_the_run_did_not_end(tmp_path, make):
    def train():
        with Writer(tmp_path, parameters=("w", "b")) as log:
            log.append(make(0, 1)[0])
            raise ZeroDivisionError("in the training")

    with pytest.raises(ZeroDivisionError, match="in the training"):
        train()
    record = read(tmp_path)
    assert (len(record.readings), record.complete) == (1, False)


def test_a_forgotten_writer_is_collected_and_closed(tmp_path, make):
    log = Writer(tmp_path, parameters=("w", "b"))
    log.append(make(0, 1)[0])
    del log
    gc.collect()
    record = read(tmp_path)
    assert (len(record.readings), record.complete) == (1, True)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(grad_norms=(1.0,)), "grad_norms: got 1 norms, want one for each of 2 parameters"),
        (Reading(step=2**63), "step: got 9223372036854775808"),
    ],
)
def test_a_reading_that_does_not_fit_is_refused_and_nothing_else_is_lost(tmp_path, make, reading, message):
    with Writer(tmp_path, parameters=("w", "b")) as log:
        log.append(make(0, 1)[0])
        with pytest.raises(RunLogError, match=message):
            log.append(reading)
    assert len(read(tmp_path).readings) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": -1}, "rank: got -1"),
        ({"rank": True}, "rank: got True"),
        ({"flush_every_steps": 0}, "flush_every_steps: got 0"),
        ({"flush_every_s": NAN}, "flush_every_s: got nan"),
        ({"facts": {"seed": 3}}, "facts: got {'seed': 3}"),
        ({"parameters": ("x" * 10_001,)}, "names of 1 to 10000 characters"),
        ({"parameters": ("",)}, "parameters and dtype: got ''"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_made(tmp_path, setting, message):
    with pytest.raises(SettingError, match=message):
        Writer(tmp_path / "run", **{"parameters": ("w",), **setting})
    assert not (tmp_path / "run").exists()


def test_a_relative_directory_is_kept_when_the_training_moves(tmp_path, make, monkeypatch, layers):
    monkeypatch.chdir(tmp_path)
    log = Writer("run", parameters=())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.append(Reading(layers=layers))  # opens a file
    log.close()
    assert log.failed == ""
    assert read(tmp_path / "run").readings[0].layers == layers


def test_a_removed_directory_ends_the_log_and_not_the_training(tmp_path, make, caplog):
    directory = tmp_path / "run"
    log = Writer(directory, parameters=("w", "b"), flush_every_steps=1)
    log.append(make(0, 1)[0])
    assert log.failed == ""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    for reading in make(1, 5):
        log.append(reading)
    log.close()
    assert "the file was removed" in log.failed
    assert [(record.name, record.levelno) for record in caplog.records] == [("evengrad.runlog", logging.ERROR)]
    assert not is_run(directory)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("taken", [0, 10])
def test_a_full_disk_ends_the_log_at_a_whole_batch(tmp_path, make, caplog, monkeypatch, taken):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    for reading in make(0, 4):
        log.append(reading)
    whole_bytes, write = log.path.stat().st_size, os.write
    full = os.open("/dev/full", os.O_WRONLY)
    calls = []

    def write_until_full(handle, data):
        calls.append(len(data))
        return write(handle, data[:taken]) if taken and len(calls) == 1 else write(full, data)

    monkeypatch.setattr(os, "write", write_until_full)
    for reading in make(4, 8):
        log.append(reading)
    monkeypatch.undo()
    log.close()
    os.close(full)
    assert "No space left on device" in log.failed
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert log.path.stat().st_size == whole_bytes
    assert [reading.step for reading in read(tmp_path).readings] == [0, 1, 2, 3]


def test_a_number_of_the_wrong_type_ends_the_log_and_not_the_training(tmp_path, make, caplog):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=1)
    log.append(make(0, 1)[0])
    log.append(Reading(step=1, scale="one"))
    log.close()
    assert log.failed.startswith("ValueError")
    assert len(caplog.records) == 1
    assert len(read(tmp_path).readings) == 1


def test_each_batch_is_one_write(tmp_path, make, monkeypatch):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=5)
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(len(data)) or write(handle, data))
    for reading in make(0, 20):
        log.append(reading)
    assert len(written) == 4
    log.close()
    assert written[4:] == [8]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_process_leaves_the_log_alone(tmp_path, make):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    log.append(make(0, 1)[0])
    child = os.fork()
    if child == 0:
        log.append(make(1, 2)[0])
        log.append(make(2, 3)[0])
        log.flush()
        log.close()
        os._exit(0 if "forked" in log.failed else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read(tmp_path).readings == ()
    log.flush()
    child = os.fork()
    if child == 0:
        log.close()  # with nothing waiting
        os._exit(0)
    os.waitpid(child, 0)
    log.append(make(1, 2)[0])
    log.close()
    record = read(tmp_path)
    assert ([reading.step for reading in record.readings], record.complete) == ([0, 1], True)


def test_the_writer_shows_its_settings_in_one_line(tmp_path):
    with Writer(tmp_path, parameters=("w", "b")) as log:
        assert repr(log) == f"Writer('{tmp_path}', file='rank00000-0000.steps.arrows', parameters=2)"
