"""Trainings in processes of this machine: the same numbers, and what goes wrong in one is a result of that one."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from trained_apart import STEPS, data, gone, task

from evengrad.cli._load import load_task
from evengrad.nouns import BatchError, SettingError, TaskError
from evengrad.trial._here import Here
from evengrad.trial._local import LocalProcesses
from evengrad.trial._plan import Plan


def with_batches(before):
    """Make a task whose first batch comes after something has happened."""
    inputs, labels = data()

    def train():
        before()
        yield inputs, labels

    return task(train=train)


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
    assert one.findings == other.findings
    assert one.first_batch == other.first_batch
    assert (one.state is None) == (other.state is None)
    for name, value in (one.state or {}).items():
        assert torch.equal(value, other.state[name])


@pytest.fixture(scope="module")
def engine():
    engine = LocalProcesses(workers=2)
    yield engine
    engine.close()


@pytest.fixture
def ended():
    """Start engines that are closed whatever happens."""
    engines = []

    def start(**settings):
        engines.append(LocalProcesses(**settings))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(autouse=True)
def threads():
    """Compute with one thread, as each of two workers on two processors does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_results_are_those_of_this_process_to_the_bit(engine):
    plans = [plan(task(), seed=seed) for seed in range(3)]
    ticks = []
    for one, other in zip(outcomes(engine, plans, ticks.append), outcomes(Here(), plans), strict=True):
        check_same(one, other)
    assert sum(ticks) == 3 * STEPS


def test_a_training_in_two_parts_is_gone_on_with_by_the_worker_that_holds_it(engine, tmp_path):
    begun = tmp_path / "begun"

    def model():
        with begun.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return nn.Linear(8, 2)

    what = task(model=model)
    first = [plan(what, seed=seed, until=2) for seed in range(3)]
    then = [plan(what, seed=seed) for seed in (1, 2)]
    paused = outcomes(engine, first)
    assert [course.state for course in paused] == [None, None, None]
    engine.forget(first[:1])
    found = outcomes(engine, then)
    assert len(begun.read_text().split()) == 3
    for one, other in zip(found, outcomes(Here(), then), strict=True):
        assert [step for step, _ in one.trial.metrics] == [2, STEPS]
        check_same(
            replace(one, trial=replace(one.trial, metrics=())), replace(other, trial=replace(other.trial, metrics=()))
        )


def test_a_training_whose_worker_is_gone_starts_anew_and_gives_the_same(ended):
    engine = ended(workers=1)
    outcomes(engine, [plan(task(), until=2)])
    (pid,) = engine.pids
    os.kill(pid, signal.SIGKILL)
    assert gone([pid])
    (found,), (wanted,) = outcomes(engine, [plan(task())]), outcomes(Here(), [plan(task())])
    assert found.trial.losses == wanted.trial.losses
    assert engine.pids != (pid,)


@pytest.mark.parametrize("of", ["engine", "plan"])
def test_the_shorter_of_two_limits_counts(ended, of):
    engine = ended(workers=1, time_s=3.0 if of == "engine" else 10_000.0)
    hangs = plan(with_batches(lambda: time.sleep(10_000)), "bad", time_s=10_000.0 if of == "engine" else 3.0)
    (bad,) = outcomes(engine, [hangs])
    assert bad.trial.error == "no end after 3 s: ended"


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def say_and_leave():
    print("the last that was heard of me")
    os._exit(3)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (leave, "the process ended with exit code 3"),
        (segfault, "the process ended by SIGSEGV; it last wrote: File "),
        (say_and_leave, "it last wrote: the last that was heard of me"),
    ],
)
def test_a_training_that_ends_its_process_is_a_result_and_the_others_go_on(engine, end, words):
    plans = [plan(with_batches(end), "bad"), *(plan(task(), seed=seed) for seed in (1, 2))]
    bad, *good = outcomes(engine, plans)
    assert words in bad.trial.error
    assert bad.error is None
    assert (bad.trial.label, bad.trial.steps, bad.trial.stage) == ("bad", STEPS, "halving 1")
    for one, other in zip(good, outcomes(Here(), plans[1:]), strict=True):
        check_same(one, other)


def test_a_training_that_hangs_is_ended_and_the_next_one_runs(ended):
    engine = ended(workers=1)
    hangs = plan(with_batches(lambda: time.sleep(10_000)), "bad", time_s=3.0)
    bad, good = outcomes(engine, [hangs, plan(task())])
    assert bad.trial.error == "no end after 3 s: ended"
    assert good.trial.error == ""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what memory a process has")
def test_a_training_that_needs_too_much_memory_is_ended_and_the_next_one_runs(ended):
    engine = ended(workers=1, memory_bytes=700 << 20)

    def take():
        kept = [torch.ones(1 << 22) for _ in range(64)]  # 1 GiB
        time.sleep(10_000)
        return kept

    plans = [plan(task(), seed=1), plan(with_batches(take), "bad"), plan(task())]
    _, bad, good = outcomes(engine, plans)
    assert bad.trial.error == "needed more than 0.684 GiB"
    assert good.trial.error == ""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what memory a process has")
def test_what_another_training_left_in_a_worker_does_not_count(ended):
    engine = ended(workers=1, memory_bytes=900 << 20)

    def leak(name):
        def leave():
            setattr(torch, name, torch.ones(1 << 26))  # 256 MiB that nobody frees

        return leave

    plans = [plan(with_batches(leak(f"left_over_{number}")), str(number)) for number in range(3)]
    assert [course.trial.error for course in outcomes(engine, plans)] == ["", "", ""]


def test_what_the_task_raises_comes_back_as_the_error_that_it_is(engine):
    def broken():
        raise RuntimeError("no such layer")

    bad, empty, good = outcomes(engine, [plan(task(model=broken), "a"), plan(task(train=list), "b"), plan(task())])
    assert isinstance(bad.error, TaskError)
    line = broken.__code__.co_firstlineno + 1
    assert bad.error.came.startswith("RuntimeError: no such layer (")
    assert bad.error.came.endswith(f"test_local.py, line {line}, in broken)")
    assert isinstance(empty.error, BatchError)
    assert empty.trial.error == str(empty.error)
    assert good.trial.error == ""


def test_a_task_that_leaves_by_sys_exit_is_a_result(engine):
    (bad,) = outcomes(engine, [plan(with_batches(lambda: sys.exit(4)), "bad")])
    assert "SystemExit: 4" in bad.trial.error


def test_a_worker_computes_with_the_settings_of_this_process(engine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--width", "8"])
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    inputs, labels = torch.zeros(4, 8), torch.zeros(4, dtype=torch.long)

    def say():
        flags = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        raise ValueError(f"{flags} {os.getcwd()} {sys.path[0]} {sys.argv}")  # noqa: PTH109

    try:
        (found,) = outcomes(engine, [plan(task(train=lambda: [(inputs, labels)], validate=lambda model: say()))])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    said = f"(torch.float64, True, 1) {tmp_path} {tmp_path} ['train.py', '--width', '8']"
    assert said in found.error.came


def test_what_the_task_prints_and_reads_does_not_touch_the_messages(engine, capfd):
    def talk():
        print("much" * 50_000)
        os.write(1, b"\x00\x01" * 50_000)
        sys.stderr.write("x" * 200_000)
        assert sys.stdin.read() == ""

    (found,) = outcomes(engine, [plan(with_batches(talk))])
    assert found.trial.error == ""
    assert capfd.readouterr() == ("", "")


def test_a_task_from_a_file_runs_in_a_worker(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "its_neighbour.py").write_text("WIDTH = 8\n")
    path = tmp_path / "a_training.py"
    path.write_text(
        "import torch, evengrad\nfrom torch import nn\nimport its_neighbour\n\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(its_neighbour.WIDTH, 2)\n"
        "    def forward(self, data):\n        return self.layer(data)\n\n"
        "task = evengrad.Task(model=Model, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),\n"
        "    loss=nn.functional.mse_loss, train=lambda: [(torch.ones(4, 8), torch.ones(4, 2))],\n"
        "    validate=lambda m: -float((m(torch.ones(4, 8)) - 1).abs().mean()), steps=6)\n"
    )
    plans = [plan(load_task(f"{path}:task"))]
    check_same(*outcomes(engine, plans), *outcomes(Here(), plans))


def test_a_data_loader_with_processes_of_its_own_works_and_none_of_them_stays(ended, tmp_path):
    inputs, labels = data()
    pids = tmp_path / "pids"

    def note(worker):
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n")

    def train():
        dataset = torch.utils.data.TensorDataset(inputs, labels)
        return torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=1, worker_init_fn=note)

    def stuck():
        yield from train()
        iterator = iter(train())
        next(iterator)
        time.sleep(10_000)

    engine = ended(workers=1)
    good, bad = outcomes(engine, [plan(task(train=train)), plan(task(train=stuck), "bad", time_s=6.0)])
    assert good.trial.error == ""
    assert bad.trial.error == "no end after 6 s: ended"
    assert gone([int(pid) for pid in pids.read_text().split()])


def test_leaving_the_results_ends_what_was_running_and_the_engine_goes_on(ended):
    engine = ended(workers=2)
    results = engine.run([plan(task()), plan(with_batches(lambda: time.sleep(10_000)), "slow")], lambda steps: None)
    assert next(results)[0] == 0
    pids = engine.pids
    results.close()
    assert len(pids) == 2
    assert len(engine.pids) == 1
    assert outcomes(engine, [plan(task())])[0].trial.error == ""
    engine.close()
    assert gone(pids)
    assert engine.pids == ()


@pytest.mark.parametrize("name", ["workers", "memory_bytes", "time_s"])
def test_a_limit_that_is_not_positive_is_refused(name):
    with pytest.raises(SettingError, match=f"{name}: got 0, want a positive number or None"):
        LocalProcesses(**{name: 0})
