"""Scripts whose trainings run in processes: no guard is needed, and no process is left, whatever ends the script."""

import signal
import subprocess
import sys
import time

import pytest
from trained_apart import gone

SCRIPT = """
import os, pathlib, sys, time
import torch
from torch import nn
import evengrad
from evengrad.trial._local import LocalProcesses
from evengrad.trial._plan import Plan

print("this script runs")
folder = pathlib.Path(sys.argv[1])
inputs = torch.eye(4)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, data):
        return self.layer(data)

def train():
    (folder / str(os.getpid())).touch()
    yield inputs, torch.ones(4, 2)
    if len(sys.argv) > 2:
        time.sleep(10_000)

task = evengrad.Task(
    model=Model, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), loss=nn.functional.mse_loss,
    train=train, validate=lambda model: -float((model(inputs) - 1).abs().mean()), steps=3,
)
engine = LocalProcesses(workers=2)
plans = [Plan(task=task, label="untreated", seed=seed, steps=3, stage="scout") for seed in range(2)]
for place, course in engine.run(plans, lambda steps: None):
    print("result", course.trial.error, len(course.trial.losses))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    folder = tmp_path / "pids"
    folder.mkdir()
    started = []

    def start(*words):
        command = [sys.executable, str(path), str(folder), *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1], folder

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(folder, count):
    deadline_s = time.monotonic() + 120
    while len(found := list(folder.iterdir())) < count and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert len(found) == count
    return [int(path.name) for path in found]


def test_a_script_without_a_guard_runs_once_and_leaves_no_process(script):
    process, folder = script()
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines() == ["this script runs", "result  3", "result  3"]
    assert gone(wait_for(folder, 2))


def test_ctrl_c_ends_the_script_and_all_workers(script):
    process, folder = script("hang")
    pids = wait_for(folder, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert gone(pids)


def test_no_worker_outlives_a_parent_that_was_killed(script):
    process, folder = script("hang")
    pids = wait_for(folder, 2)
    process.kill()
    process.communicate(timeout=60)
    assert gone(pids)
