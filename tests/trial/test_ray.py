"""Trainings on a real Ray of this machine: the same numbers, and a worker that is lost costs nothing but time."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained_apart import STEPS, data
from trained_apart import task as small_task

from evengrad.nouns import SettingError, TaskError
from evengrad.runlog import read
from evengrad.trial._here import Here
from evengrad.trial._plan import Plan
from evengrad.trial._ray import OnRay

ray = pytest.importorskip("ray", reason="needs the extra ray")

HALF = (("num_cpus", 0.5),)  # so that two run at once on one processor too


def task(**changes):
    return small_task(**({"resources": HALF} | changes))


def stopping(folder, stop):
    """Make a task that notes the process of each start, and at its third step does what is given."""
    inputs, labels = data()

    def train():
        (folder / f"{time.monotonic_ns()} {os.getpid()}").touch()
        batches = list(zip(inputs.split(16), labels.split(16), strict=True))
        yield from batches[:2]
        stop(len(list(folder.iterdir())))
        yield from batches[2:]

    return task(train=train)


def starts(folder):
    return [int(path.name.split()[1]) for path in sorted(folder.iterdir())]


def until(condition, patience_s=120.0):
    """Wait; the time is only there for a test that fails."""
    deadline_s = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert condition()


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def plan(what, label="untreated", **changes):
    settings = {"task": what, "label": label, "seed": 0, "steps": STEPS, "stage": "halving 1"}
    return Plan(**(settings | changes))


def outcomes(engine, plans, tick=lambda steps: None):
    found = dict(engine.run(plans, tick))
    assert sorted(found) == list(range(len(plans)))
    return [found[place] for place in range(len(plans))]


def check_same(one, other):
    """Compare two courses to the bit; only the clock may differ."""
    assert replace(one.trial, duration_s=0.0) == replace(other.trial, duration_s=0.0)
    assert one.record == other.record
    assert (one.findings, one.first_batch) == (other.findings, other.first_batch)
    assert (one.state is None) == (other.state is None)
    for name, value in (one.state or {}).items():
        assert torch.equal(value, other.state[name])


@pytest.fixture(scope="module")
def engine():
    engine = OnRay("local")
    yield engine
    engine.close()
    assert not ray.is_initialized()


@pytest.fixture(autouse=True)
def threads():
    """Compute with one thread, as a training with one processor does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_results_are_those_of_this_process_to_the_bit(engine):
    plans = [plan(task(), until=3), plan(task(), seed=1)]
    ticks = []
    for one, other in zip(outcomes(engine, plans, ticks.append), outcomes(Here(), plans), strict=True):
        check_same(one, other)
    assert sorted(ticks) == [3, STEPS]


def test_a_training_whose_worker_is_killed_is_run_again_and_gives_the_same(engine, tmp_path):
    what = stopping(tmp_path, lambda count: time.sleep(10_000) if count == 1 else None)
    results = engine.run([plan(what), plan(task(), "other")], lambda steps: None)
    assert next(results)[1].trial.label == "other"
    until(lambda: starts(tmp_path))
    (first,) = starts(tmp_path)
    os.kill(first, signal.SIGKILL)
    ((_, found),) = list(results)
    assert len(starts(tmp_path)) >= 2
    assert first not in starts(tmp_path)[1:]
    check_same(found, *outcomes(Here(), [plan(task())]))


def test_a_training_that_always_ends_its_worker_is_a_result(engine, tmp_path):
    (bad,) = outcomes(engine, [plan(stopping(tmp_path, lambda count: os._exit(3)))])
    assert bad.trial.error.startswith("lost with its worker 4 times: WorkerCrashedError")
    assert len(starts(tmp_path)) == 4


def test_what_the_task_raises_comes_back_as_the_error_that_it_is(engine):
    def broken():
        raise RuntimeError("no such layer")

    bad, good = outcomes(engine, [plan(task(model=broken), "bad"), plan(task())])
    assert isinstance(bad.error, TaskError)
    assert bad.error.came.startswith("RuntimeError: no such layer (")
    assert bad.error.came.endswith(f"test_ray.py, line {broken.__code__.co_firstlineno + 1}, in broken)")
    assert good.trial.error == ""


def test_a_training_that_hangs_is_ended_after_its_time(engine, tmp_path):
    hangs = stopping(tmp_path, lambda count: time.sleep(10_000))
    (bad,) = outcomes(engine, [plan(hangs, time_s=3.0)])
    assert bad.trial.error == "no end after 3 s: ended"
    until(lambda: gone(starts(tmp_path)[0]))


def test_leaving_the_results_cancels_what_was_running(engine, tmp_path):
    results = engine.run([plan(stopping(tmp_path, lambda count: time.sleep(10_000))), plan(task())], lambda steps: None)
    assert next(results)[0] == 1
    until(lambda: starts(tmp_path))
    results.close()
    until(lambda: gone(starts(tmp_path)[0]))
    assert len(starts(tmp_path)) == 1


def test_readings_are_logged_where_the_user_is(engine, tmp_path):
    (course,) = outcomes(engine, [plan(task(), log=tmp_path / "run")])
    assert read(tmp_path / "run").readings[-1].step == course.record.readings[-1].step
    assert [reading.loss for reading in read(tmp_path / "run").readings][:STEPS] == list(course.trial.losses)


def test_a_training_that_asks_for_more_than_there_is_is_refused(engine):
    with pytest.raises(SettingError, match=r"Task.resources: got num_gpus=1000, want no more than this machine has"):
        list(engine.run([plan(task(resources=(("num_gpus", 1000),)))], lambda steps: None))


def test_a_connected_process_keeps_its_ray_and_takes_no_other_address(engine):
    other = OnRay()
    other.close()
    assert ray.is_initialized()
    with pytest.raises(SettingError, match=r"address: got '10\.0\.0\.1:6379', want None"):
        OnRay("10.0.0.1:6379")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"want the extra ray; pip install 'evengrad\[ray\]'"):
        OnRay()


SCRIPT = """
import os, pathlib, sys, time
import torch
from torch import nn
import evengrad
from evengrad.trial._ray import OnRay
from evengrad.trial._plan import Plan

folder = pathlib.Path(sys.argv[1])

def train():
    (folder / str(os.getpid())).touch()
    (folder / str(os.getppid())).touch()
    yield torch.eye(4), torch.ones(4, 2)
    time.sleep(10_000)

task = evengrad.Task(
    model=lambda: nn.Linear(4, 2), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    loss=nn.functional.mse_loss, train=train, validate=lambda model: 0.0, steps=3,
)
engine = OnRay("local")
try:
    list(engine.run([Plan(task=task, label="untreated", seed=0, steps=3, stage="scout")], lambda steps: None))
finally:
    engine.close()
"""


def test_ctrl_c_ends_the_script_the_trainings_and_the_ray_that_it_started(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    folder = tmp_path / "pids"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(path), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: len(list(folder.iterdir())) == 2 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    for pid in folder.iterdir():
        until(lambda pid=pid: gone(int(pid.name)))
