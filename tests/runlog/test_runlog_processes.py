"""Other processes: one that writes, one that is killed, one that only reads and has no torch."""

import signal
import subprocess
import sys

import pytest

from evengrad.runlog import Writer, read

WRITE = """
import sys, time
from evengrad.nouns import Ends, LayerReading, ParameterReading, Reading
from evengrad.runlog import Writer
sampled = {
    "layers": (LayerReading(name="net", kind="Linear"),), "weights": (ParameterReading(name="w"),), "ends": Ends()
}
log = Writer(sys.argv[1], parameters=("w",), flush_every_steps=10, flush_every_s=1e9)
for step in range(int(sys.argv[2])):
    log.append(Reading(step=step, loss=step / 4, grad_norms=(2.0,), **({} if step % 3 else sampled)))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writing(tmp_path):
    """Start a process that has appended 25 readings, in batches of 10, and waits."""
    command = [sys.executable, "-c", WRITE, str(tmp_path), "25"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_run_is_read_while_another_process_writes_it_and_after_that_ended(tmp_path, writing):
    record = read(tmp_path, live=True)
    assert [reading.loss for reading in record.readings] == [step / 4 for step in range(20)]
    assert not record.complete
    writing.stdin.close()  # its script ends, without a close
    assert writing.wait() == 0
    record = read(tmp_path)
    assert [reading.loss for reading in record.readings] == [step / 4 for step in range(25)]
    assert (record.complete, record.note) == (True, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_keeps_what_was_flushed_and_says_that_it_did_not_end(tmp_path, writing):
    writing.send_signal(signal.SIGKILL)
    assert writing.wait() == -signal.SIGKILL
    record = read(tmp_path)
    assert [reading.step for reading in record.readings] == list(range(20))
    sampled = [(bool(reading.layers), bool(reading.weights), bool(reading.ends)) for reading in record.readings]
    assert sampled == [(step % 3 == 0,) * 3 for step in range(20)]
    assert not record.complete
    assert record.note == "rank00000-0000.steps.arrows: the run did not end by itself, or has not ended yet"
    with Writer(tmp_path, parameters=("w",)) as log:
        assert log.path.name == "rank00000-0001.steps.arrows"


def test_reading_loads_neither_torch_nor_pyarrow_nor_pandas(tmp_path, make):
    with Writer(tmp_path, parameters=("w", "b")) as log:
        for reading in make(0, 5, sample=2):
            log.append(reading)
    code = (
        "import sys, evengrad.runlog as runlog; print(len(runlog.read(sys.argv[1]).readings), "
        "sorted({'torch', 'pyarrow', 'pandas', 'polars'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "5 []\n"


def test_a_process_that_ends_by_an_exception_is_not_called_complete(tmp_path):
    script = (
        "import sys\n"
        "from evengrad.nouns import Reading\n"
        "from evengrad.runlog import Writer\n"
        "writer = Writer(sys.argv[1], parameters=('w',))\n"
        "writer.append(Reading(step=0, loss=1.0))\n"
        "if sys.argv[2] == 'raise': raise ValueError('gone')\n"
    )
    for end in ("return", "raise"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / end), end], capture_output=True, check=False)
    assert read(tmp_path / "return").complete
    cut = read(tmp_path / "raise")
    assert [reading.loss for reading in cut.readings] == [1.0]
    assert not cut.complete
