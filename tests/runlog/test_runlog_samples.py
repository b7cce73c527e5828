"""Whatever a reading of a sampled step says comes back, as does the set-up of the run."""

import json
import logging
import os
import types
from dataclasses import fields, is_dataclass, replace
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evengrad.nouns import (
    Ends,
    LayerReading,
    ParameterReading,
    Reading,
    Record,
    RunLogError,
    SettingError,
    Setup,
    TensorReading,
    to_json,
)
from evengrad.runlog import Writer, read

SETUP = Setup(optimizer="AdamW", eps=1e-8, numels=(12, 3), frozen=("emb",), sources=(("net", "a.py:3 in Net.forward"),))

whole = st.integers(-(2**63), 2**63 - 1)
names = st.text(min_size=1, max_size=5)


def any_of(kind, width):
    """Any value of a field's type; floats of so many bits."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field.name: any_of(hints[field.name], width) for field in fields(kind)})
    if origin is tuple and args[1:] == (...,):
        return st.lists(any_of(args[0], width), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(any_of(arg, width) for arg in args))
    if origin in {Union, types.UnionType}:
        return st.one_of([any_of(arg, width) for arg in args])
    plain = {str: st.text(max_size=5), int: whole, bool: st.booleans(), type(None): st.none()}
    return st.floats(width=width) if kind is float else plain[kind]


@st.composite
def any_record(draw):
    """Any record that a run could leave; its statistics have the width of the run's columns."""
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float64"]))
    width = 64 if dtype == "float64" else 32
    parameters = tuple(draw(st.lists(names, max_size=3)))
    norms = st.just(()) | st.tuples(*(st.floats(width=width) for _ in parameters))
    steps = sorted(draw(st.sets(whole.filter(lambda step: step > -(2**63)), max_size=5)))
    own = {
        "grad_norms": norms,
        "layers": any_of(tuple[LayerReading, ...], width),
        "weights": any_of(tuple[ParameterReading, ...], width),
    }
    hints = get_type_hints(Reading)
    others = {name: any_of(hint, 64) for name, hint in hints.items() if name not in {*own, "step"}}
    readings = tuple(draw(st.builds(Reading, step=st.just(step), **own, **others)) for step in steps)
    return Record(readings=readings, parameters=parameters, dtype=dtype, setup=draw(any_of(Setup | None, 64)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=any_record(), every=st.integers(1, 4))
def test_any_record_comes_back(tmp_path_factory, same, record, every):
    directory = tmp_path_factory.mktemp("run")
    with Writer(
        directory, parameters=record.parameters, dtype=record.dtype, setup=record.setup, flush_every_steps=every
    ) as log:
        for reading in record.readings:
            log.append(reading)
    assert log.failed == ""
    assert same(read(directory), replace(record, source=str(directory)))


def test_a_name_with_half_a_surrogate_pair_comes_back(tmp_path):
    name = "\ud800"
    reading = Reading(
        layers=(LayerReading(name=name, kind="A"),),
        weights=(ParameterReading(name=name),),
        ends=Ends(inputs=(TensorReading(name=name),)),
    )
    with Writer(tmp_path, parameters=(name,), setup=Setup(frozen=(name,))) as log:
        log.append(reading)
    record = read(tmp_path)
    assert (record.readings, record.setup) == ((reading,), Setup(frozen=(name,)))


def test_samples_repeated_for_a_step_stay_with_their_own_reading(tmp_path, weights, ends):
    with Writer(tmp_path, parameters=()) as log:
        log.append(Reading(step=0, weights=weights))
        log.append(Reading(step=1, loss=1.0))  # the training goes back after this
        log.append(Reading(step=0, loss=2.0, ends=ends))
        log.append(Reading(step=1, weights=weights[:1]))
    record = read(tmp_path)
    assert record.readings == (Reading(step=0, loss=2.0, ends=ends), Reading(step=1, weights=weights[:1]))
    assert record.complete


def test_a_run_without_samples_has_no_files_for_them(tmp_path, make):
    with Writer(tmp_path, parameters=("w", "b"), setup=SETUP) as log:
        for reading in make(0, 5):
            log.append(reading)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "rank00000-0000.steps.arrows"]


def test_a_step_that_is_in_the_log_has_its_samples_there_too(tmp_path, make, monkeypatch):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    for reading in make(0, 2, sample=1):
        log.append(reading)
    write, notes = os.write, []
    monkeypatch.setattr(
        os, "write", lambda handle, data: notes.append(read(tmp_path, live=True).note) or write(handle, data)
    )
    for reading in make(2, 4, sample=1):
        log.append(reading)
    monkeypatch.undo()
    notes.append(read(tmp_path, live=True).note)
    assert notes == ["rank00000-0000.steps.arrows: the run did not end by itself, or has not ended yet"] * 5


def test_each_batch_is_one_write_into_each_file(tmp_path, make, monkeypatch):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=5)
    for reading in make(0, 5, sample=1):  # opens the files
        log.append(reading)
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(handle) or write(handle, data))
    for reading in make(5, 15, sample=1):
        log.append(reading)
    log.close()
    first = written[:4]
    assert written == first * 3  # the end markers come last
    assert len(set(first)) == 4


@pytest.mark.parametrize("name", ["layers", "weights"])
def test_too_many_sets_cost_samples_but_no_steps_and_are_said(tmp_path, layers, weights, caplog, name):
    content = {"layers": layers, "weights": weights}[name]
    with Writer(tmp_path, parameters=()) as log:
        for step in range(103):
            log.append(Reading(step=step, **{name: (replace(content[0], name=f"thing {step}"),)}))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    record = read(tmp_path)
    assert len(record.readings) == 103
    assert (record.complete, record.note) == (False, f"the {name} of 3 sampled steps, from 100 to 102, are not there")


def test_ends_that_change_at_each_step_share_a_file(tmp_path, ends):
    with Writer(tmp_path, parameters=()) as log:
        for step in range(200):
            log.append(Reading(step=step, ends=replace(ends, loss_ops=(f"Op{step}",))))
    assert len(list(tmp_path.glob("*.ends-*"))) == 1
    assert [reading.ends.loss_ops for reading in read(tmp_path).readings] == [(f"Op{step}",) for step in range(200)]


@pytest.mark.parametrize("given_as", [{"setup": SETUP}, {"facts": {"setup": to_json(SETUP), "seed": "3"}}])
def test_the_set_up_comes_back_however_it_was_given(tmp_path, given_as):
    Writer(tmp_path, parameters=("w", "b"), **given_as).close()
    record = read(tmp_path)
    assert (record.setup, record.complete) == (SETUP, True)


@pytest.mark.parametrize(
    "given_as",
    [
        {"setup": SETUP, "facts": {"setup": to_json(SETUP)}},
        {"facts": {"setup": "by hand"}},
        {"facts": {"setup": 3}},
        {"setup": Setup(numels=(2**63,))},
        {"setup": Setup(optimizer="x" * 100_001)},
    ],
)
def test_a_set_up_that_could_not_be_read_back_is_refused_before_anything_is_made(tmp_path, given_as):
    with pytest.raises(SettingError, match="setup: got"):
        Writer(tmp_path / "run", parameters=(), **given_as)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"numels": 3}', '{"numels": [1' + "0" * 400 + "]}", '{"eps": "small"}', "[" * 100_000]
)
def test_a_damaged_set_up_is_said_and_everything_else_is_read(tmp_path, make, text):
    with Writer(tmp_path, parameters=("w", "b"), setup=SETUP) as log:
        log.append(make(0, 1)[0])
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["facts"]["setup"] = text
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    record = read(tmp_path)
    assert record.readings == tuple(make(0, 1))
    assert (record.setup, record.complete, record.note) == (None, False, "the set-up in meta.json cannot be read")


def test_after_a_restart_the_set_up_of_rank_0_counts_and_the_other_facts_stay(tmp_path):
    Writer(tmp_path, parameters=(), facts={"seed": "3"}).close()
    assert read(tmp_path).setup is None
    Writer(tmp_path, parameters=(), setup=SETUP, facts={"seed": "4"}).close()
    assert read(tmp_path).setup == SETUP
    Writer(tmp_path, parameters=(), rank=1, setup=replace(SETUP, eps=1.0)).close()
    assert read(tmp_path).setup == SETUP
    Writer(tmp_path, parameters=(), setup=replace(SETUP, eps=0.5)).close()
    Writer(tmp_path, parameters=()).close()
    assert read(tmp_path).setup == replace(SETUP, eps=0.5)
    assert json.loads((tmp_path / "meta.json").read_text())["facts"]["seed"] == "3"


def test_a_restart_with_other_parameters_changes_no_fact(tmp_path):
    Writer(tmp_path, parameters=("w",), setup=SETUP).close()
    before = (tmp_path / "meta.json").read_bytes()
    with pytest.raises(RunLogError, match="begin a new directory"):
        Writer(tmp_path, parameters=("v",), setup=replace(SETUP, eps=0.5))
    assert (tmp_path / "meta.json").read_bytes() == before


def test_a_set_up_is_known_better_later_and_only_rank_0_says_so(tmp_path):
    later = replace(SETUP, untrained=("w",))
    with Writer(tmp_path, parameters=("w", "b"), setup=SETUP, facts={"seed": "4"}) as log:
        Writer(tmp_path, parameters=("w", "b"), rank=1).update(later)
        assert read(tmp_path, live=True).setup == SETUP
        log.update(later)
        log.append(Reading(step=0, loss=1.0))
        assert read(tmp_path, live=True).setup == later
    log.update(SETUP)
    assert read(tmp_path).setup == later
    assert json.loads((tmp_path / "meta.json").read_text())["facts"]["seed"] == "4"
