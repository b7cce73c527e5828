"""A log that is cut, damaged or continued gives its whole batches, never more, and says what is missing."""

import random
import warnings
from dataclasses import replace

import pytest

from evengrad.nouns import LayerReading, Reading, RunLogError, TornLogWarning
from evengrad.runlog import Writer, read

STEPS = "rank00000-0000.steps.arrows"
LAYERS = "rank00000-0000.layers-000.arrows"
WEIGHTS = "rank00000-0000.weights-000.arrows"
ENDS = "rank00000-0000.ends-000.arrows"
NOT_THERE = {STEPS: {}, LAYERS: {"layers": ()}, WEIGHTS: {"weights": ()}, ENDS: {"ends": None}}


def write(directory, readings, **settings):
    with Writer(directory, parameters=("w", "b"), **settings) as log:
        for reading in readings:
            log.append(reading)
    return log.path


def read_quietly(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLogWarning)
        return read(directory)


def test_a_steps_file_cut_at_any_byte_gives_its_whole_batches_and_says_how_much_is_missing(tmp_path, make):
    readings = tuple(make(0, 6))
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    ends = [log.path.stat().st_size]
    for reading in readings:
        log.append(reading)
        ends += [log.path.stat().st_size] * (log.path.stat().st_size != ends[-1])
    log.close()
    data = log.path.read_bytes()
    assert len(ends) == 4
    for size in range(len(data)):
        log.path.write_bytes(data[:size])
        record = read_quietly(tmp_path)
        batches = sum(end <= size for end in ends[1:])
        assert record.readings == readings[: 2 * batches]
        assert not record.complete
        torn = size - max((end for end in ends if end <= size), default=0)
        where = f"after step {2 * batches - 1}" if batches else "from its start"
        wanted = f"the end of {STEPS} is missing: {torn} bytes {where} are not a whole batch"
        assert record.note == (wanted if torn else f"{STEPS}: the run did not end by itself, or has not ended yet")
    log.path.write_bytes(data)
    assert read(tmp_path).complete


@pytest.mark.parametrize("name", ["layers", "weights", "ends"])
def test_a_file_of_samples_cut_at_any_byte_loses_samples_and_no_steps(tmp_path, make, name):
    readings = make(0, 4, sample=1)
    write(tmp_path, readings, flush_every_steps=2)
    path = tmp_path / LAYERS.replace("layers", name)
    data = path.read_bytes()
    seen = set()
    for size in range(0, len(data) - 8, 13):
        path.write_bytes(data[:size])
        record = read_quietly(tmp_path)
        there = sum(bool(getattr(reading, name)) for reading in record.readings)
        assert record.readings[:there] == tuple(readings[:there])
        lost = {"layers": (), "weights": (), "ends": None}[name]
        assert record.readings[there:] == tuple(replace(reading, **{name: lost}) for reading in readings[there:])
        assert f"the {name} of {4 - there} sampled steps" in record.note
        seen.add(there)
    assert seen == {0, 2}


@pytest.mark.parametrize("name", ["layers", "weights", "ends"])
def test_a_missing_file_of_samples_is_said(tmp_path, make, name):
    write(tmp_path, make(0, 5, sample=2))
    (tmp_path / LAYERS.replace("layers", name)).unlink()
    record = read(tmp_path)
    assert len(record.readings) == 5
    assert record.note == f"the {name} of 3 sampled steps, from 0 to 4, are not there"


def test_a_missing_steps_file_is_said(tmp_path, make):
    write(tmp_path, make(0, 5, sample=2)).unlink()
    with pytest.warns(TornLogWarning, match="the steps file beside rank00000-0000.ends-000.arrows is missing"):
        record = read(tmp_path)
    assert (record.readings, record.complete) == ((), False)


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"\xff" * 64, b"not arrow", random.Random(0).randbytes(3000)])
@pytest.mark.parametrize("ended", [True, False])
def test_garbage_at_the_end_loses_nothing_and_adds_nothing(tmp_path, make, garbage, ended):
    path = write(tmp_path, make(0, 4))
    data = path.read_bytes()
    path.write_bytes((data if ended else data[:-8]) + garbage)
    with pytest.warns(TornLogWarning, match=f"{len(garbage)} bytes after") as caught:
        record = read(tmp_path)
    assert record.readings == tuple(make(0, 4))
    assert not record.complete
    assert str(caught[0].message) == record.note
    assert caught[0].filename == __file__


def test_a_torn_end_of_a_live_run_is_no_warning(tmp_path, make):
    path = write(tmp_path, make(0, 4))
    path.write_bytes(path.read_bytes()[:-9])
    record = read(tmp_path, live=True)  # warnings are errors here
    assert not record.complete


def test_a_second_stream_after_the_first_is_not_read(tmp_path, make):
    path = write(tmp_path, make(0, 4))
    path.write_bytes(path.read_bytes() * 2)
    assert read_quietly(tmp_path).readings == tuple(make(0, 4))


@pytest.mark.parametrize("name", [STEPS, LAYERS, WEIGHTS, ENDS])
def test_a_changed_byte_anywhere_never_makes_a_reading_up(tmp_path, make, name):
    readings = {reading.step: reading for reading in make(0, 4, sample=2)}
    write(tmp_path, readings.values(), flush_every_steps=2)
    data = (tmp_path / name).read_bytes()
    chance = random.Random(1)
    shorter = 0
    for position in range(0, len(data), 1 if name == STEPS else 7):
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        (tmp_path / name).write_bytes(changed)
        record = read_quietly(tmp_path)
        for reading in record.readings:
            wanted = readings[reading.step]
            assert reading in (wanted, replace(wanted, **NOT_THERE[name]))
        shorter += len(record.readings) < 4 or "are not there" in record.note
        assert record.complete <= (len(record.readings) == 4)
    assert shorter > 0


def test_zeros_in_the_middle_as_after_a_power_loss_end_the_log_there(tmp_path, make):
    log = Writer(tmp_path, parameters=("w", "b"), flush_every_steps=2)
    sizes = []
    for reading in make(0, 6):
        log.append(reading)
        sizes.append(log.path.stat().st_size)
    log.close()
    data = bytearray(log.path.read_bytes())
    body = sizes[3] - 100
    data[body : sizes[3]] = bytes(100)  # the batch is there by its length
    log.path.write_bytes(data)
    with pytest.warns(TornLogWarning, match="after step 1 are not a whole batch"):
        record = read(tmp_path)
    assert record.readings == tuple(make(0, 2))


@pytest.mark.parametrize("seed", range(20))
def test_random_files_give_no_reading_and_no_crash(tmp_path, make, seed):
    chance = random.Random(seed)
    path = write(tmp_path, [])
    header = path.read_bytes()[:-8]
    noise = chance.randbytes(chance.randrange(1, 2000))
    path.write_bytes([noise, header + noise, b"\xff\xff\xff\xff" + noise, noise + header][seed % 4])
    record = read_quietly(tmp_path)
    assert (record.readings, record.complete) == ((), False)


def test_steps_of_another_run_are_not_taken_for_ours(tmp_path, make):
    path = write(tmp_path / "ours", make(0, 4))
    with Writer(tmp_path / "other", parameters=("w", "c")) as log:
        log.append(make(9, 10)[0])
    path.write_bytes(log.path.read_bytes())
    assert read_quietly(tmp_path / "ours").readings == ()


@pytest.mark.parametrize("name", [LAYERS, WEIGHTS, ENDS])
def test_samples_of_other_steps_are_not_taken_for_ours(tmp_path, make, name):
    write(tmp_path / "ours", make(0, 4, sample=2))
    write(tmp_path / "other", make(1, 4, sample=3))
    (tmp_path / "ours" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    record = read(tmp_path / "ours")
    assert record.readings == tuple(replace(reading, **NOT_THERE[name]) for reading in make(0, 4, sample=2))
    assert "of 2 sampled steps, from 0 to 2, are not there" in record.note


def test_a_file_of_samples_under_the_name_of_another_is_not_read(tmp_path, make):
    write(tmp_path, make(0, 4, sample=2))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / LAYERS).read_bytes())
    record = read_quietly(tmp_path)
    assert [reading.weights for reading in record.readings] == [()] * 4
    assert "the weights of 2 sampled steps, from 0 to 2, are not there" in record.note


def test_a_single_step_lost_between_two_starts_is_said(tmp_path, make):
    first = write(tmp_path, make(0, 3))
    first.write_bytes(first.read_bytes()[:-8])
    write(tmp_path, make(4, 6))
    assert read(tmp_path).note == f"steps 3 to 3, from the end of {STEPS}, are not there"


def test_a_log_file_that_is_no_file_is_an_error(tmp_path, make):
    write(tmp_path, make(0, 2))
    (tmp_path / "rank00000-0001.steps.arrows").mkdir()
    with pytest.raises(RunLogError, match="no regular file"):
        read(tmp_path)


def test_a_restart_adds_a_file_and_its_steps_count(tmp_path, make):
    first = write(tmp_path, make(0, 10, sample=3), flush_every_steps=5)
    before = first.read_bytes()
    second = write(tmp_path, make(6, 12, sample=2, loss=0.25))
    assert second.name == "rank00000-0001.steps.arrows"
    assert first.read_bytes() == before
    record = read(tmp_path)
    assert record.readings == tuple(make(0, 6, sample=3) + make(6, 12, sample=2, loss=0.25))
    assert record.complete


def test_a_restart_after_a_torn_end_covers_what_it_repeats(tmp_path, make):
    first = write(tmp_path, make(0, 10), flush_every_steps=2)
    first.write_bytes(first.read_bytes()[:-20])  # steps 8 and 9 are gone
    second = write(tmp_path, make(8, 12))
    record = read(tmp_path)  # no warning: nothing is missing
    assert record.readings == tuple(make(0, 12))
    assert (record.complete, record.note) == (True, "")
    second.unlink()
    write(tmp_path, make(10, 12))
    with pytest.warns(TornLogWarning, match="bytes after step 7 are not a whole batch"):
        record = read(tmp_path)
    assert "steps 8 to 9, from the end of rank00000-0000.steps.arrows, are not there" in record.note


def test_a_restart_that_wrote_nothing_hides_no_loss(tmp_path, make):
    first = write(tmp_path, make(0, 10))
    first.write_bytes(first.read_bytes()[:-8])  # killed
    write(tmp_path, [])
    assert read(tmp_path).note == f"{STEPS}: the run did not end by itself, or has not ended yet"


def test_a_restart_whose_first_file_is_unreadable_says_from_where(tmp_path, make):
    write(tmp_path, make(0, 10)).write_bytes(b"")
    write(tmp_path, make(5, 8))
    record = read(tmp_path)
    assert record.readings == tuple(make(5, 8))
    assert record.note == f"steps 0 to 4, from the end of {STEPS}, are not there"


def test_null_numbers_in_a_forged_file_are_no_readings(tmp_path):
    import numpy as np

    from evengrad.runlog import _arrow, _file, _steps

    path = write(tmp_path, [])
    path.unlink()
    columns = _steps.steps_columns(2, "float32")
    files = {name: [-1, -1] for name in _steps.SAMPLED}
    batch = _steps.steps_batch([Reading(step=0), Reading(step=1)], files, 2, "float32")
    batch["step"] = _arrow.Values(flat=batch["step"].flat, missing=np.array([False, True]))
    file = _file.AppendOnlyFile(path, columns, _steps.steps_facts(("w", "b")))
    file.append(batch, 2)
    file.finish()
    assert read_quietly(tmp_path).readings == ()


def test_a_layer_needs_no_more_than_its_defaults(tmp_path):
    layer = LayerReading(name="(model)", kind="Net")
    write(tmp_path, [Reading(layers=(layer,))])
    assert read(tmp_path).readings[0].layers == (layer,)


@pytest.mark.parametrize(
    ("lengths", "numbers"),
    [([-1, 2], [1.0]), ([2, -2], []), ([1, 0], []), ([0, 0], [1.0]), ([2**31 - 1, 1], [1.0])],
)
def test_lists_of_impossible_lengths_in_a_forged_file_are_no_layers(tmp_path, make, layers, lengths, numbers):
    import numpy as np

    from evengrad.runlog import _arrow, _file, _layers

    write(tmp_path, [Reading(step=0, layers=layers[:2])])
    path, table = tmp_path / LAYERS, _layers.LAYERS
    path.unlink()
    key = table.key(layers[:2])
    batch = table.batch([(0, layers[:2])], "float32")
    batch["time_steps"] = _arrow.Values(flat=np.array(lengths, dtype=np.int32))
    batch["time_grad_rms"] = _arrow.Values(flat=np.array(numbers), lengths=np.array([len(numbers)]))
    file = _file.AppendOnlyFile(path, table.columns(key, "float32"), table.facts(key))
    file.append(batch, 1)
    file.finish()
    assert read(tmp_path).note == "the layers of 1 sampled steps, from 0 to 0, are not there"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs": 3}',
        b'{"softmax_size": 1' + b"0" * 400 + b"}",
        b'{"softmax_size": 9223372036854775808}',
        b'{"output": {"name": "' + b"x" * 100_001 + b'"}}',
    ],
)
def test_a_text_in_a_forged_file_that_tells_of_no_ends_is_none(tmp_path, ends, text):
    import numpy as np

    from evengrad.runlog import _arrow, _ends, _file

    write(tmp_path, [Reading(step=0, ends=ends), Reading(step=1, ends=ends)])
    path, table = tmp_path / ENDS, _ends.ENDS
    path.unlink()
    batch = table.batch([(0, ends), (1, ends)], "float32")
    good = batch["ends"].flat[: batch["ends"].lengths[0]].tobytes()
    flat = np.frombuffer(text + good, dtype=np.uint8)
    batch["ends"] = _arrow.Values(flat=flat, lengths=np.array([len(text), len(good)]))
    file = _file.AppendOnlyFile(path, table.columns(("ends",), "float32"), table.facts(("ends",)))
    file.append(batch, 2)
    file.finish()
    record = read(tmp_path)
    assert [reading.ends for reading in record.readings] == [None, ends]
    assert record.note == "the ends of 1 sampled steps, from 0 to 0, are not there"


@pytest.mark.parametrize("name", [LAYERS, WEIGHTS])
@pytest.mark.parametrize(
    "change",
    [
        {"version": "9"},
        {"format": "other"},
        {"layers": "[]", "weights": "[]"},
        {"layers": "[" * 100_000, "weights": "{}"},
        {"layers": "[1]", "weights": "[{}]"},
        {
            "layers": '[{"name": 3, "kind": "", "weighted": true, "nonlinearity": null}]',
            "weights": '[{"name": "w", "numel": 1e9, "fan_in": 0, "dtype": "float32"}]',
        },
        {
            "layers": '[{"name": "a", "kind": "", "weighted": 1, "nonlinearity": null}]',
            "weights": '[{"name": "w", "numel": 9223372036854775808, "fan_in": 0, "dtype": "float32"}]',
        },
    ],
)
def test_a_forged_header_of_samples_is_said_and_nothing_is_taken_from_it(tmp_path, layers, weights, name, change):
    from evengrad.runlog import _file, _layers

    content, table = (layers[:1], _layers.LAYERS) if name == LAYERS else (weights[:1], _layers.WEIGHTS)
    field = name.split(".")[1].split("-")[0]
    write(tmp_path, [Reading(step=0, **{field: content})])
    (tmp_path / name).unlink()
    key = table.key(content)
    file = _file.AppendOnlyFile(tmp_path / name, table.columns(key, "float32"), table.facts(key) | change)
    file.append(table.batch([(0, content)], "float32"), 1)
    file.finish()
    record = read_quietly(tmp_path)
    assert getattr(record.readings[0], field) == ()
    assert f"the {field} of 1 sampled steps, from 0 to 0, are not there" in record.note
