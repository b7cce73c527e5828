"""The command tune: text, page, log, mistakes, Ctrl-C."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from evengrad.cli import main
from evengrad.runlog import read_story

TASKS = """
    import torch
    from torch import nn
    import evengrad

    inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    labels = inputs[:, :4].argmax(1)
    healthy = evengrad.Task(
        model=lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.2),
        loss=nn.functional.cross_entropy,
        train=lambda: [(inputs, labels)],
        validate=lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
        steps=16,
    )
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "tasks.py"
    file.write_text(textwrap.dedent(TASKS))
    return f"{file}:healthy"


def test_tune_tells_the_curve_and_writes_the_page_and_the_log(task, tmp_path, capsys):
    page, log = tmp_path / "page.html", tmp_path / "log"
    assert main(["tune", task, "--trials", "4", "--seeds", "2", "-o", str(page), "--log", str(log)]) == 0
    text = capsys.readouterr().out
    assert "no clipping needed" in text
    assert "Metric against what was swept" in text
    assert "ByGlobalNorm, max_norm" in text
    assert "Settings tried" in page.read_text(encoding="utf-8")
    assert read_story(log).sweep.recommended == "none"
    assert main(["report", str(log), "-o", str(tmp_path / "again.html")]) in {0, 1}
    assert "ByGlobalNorm, max_norm" in capsys.readouterr().out


def test_json_is_the_story_with_its_sweep(task, capsys):
    assert main(["tune", task, "--trials", "3", "--seeds", "2", "--policies", "ByGlobalNorm", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sweep"]["recommended"] == "none"
    assert {point["policy"] for point in said["sweep"]["points"]} == {"none", "ByGlobalNorm"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sweep", "momentum"], "sweep: got 'momentum', want any of lr, gain, weights"),
        (["--policies", "Sign"], "policies: got 'Sign'"),
        (["--trials", "1"], "trials: got 1, want a whole number of at least 2"),
        (["--budget", "7"], "budget: got 7"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(task, options, words, capsys):
    assert main(["tune", task, *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_ctrl_c_tells_what_was_found_and_is_status_130(task, tmp_path, capsys, monkeypatch):
    from evengrad.trial._here import Here

    of_engine, calls = Here.run, []

    def third(self, plans, tick):
        calls.append(plans)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return of_engine(self, plans, tick)

    monkeypatch.setattr(Here, "run", third)
    log = tmp_path / "log"
    assert main(["tune", task, "--trials", "6", "--log", str(log)]) == 130
    assert "The sweep was interrupted" in capsys.readouterr().out
    assert read_story(log).sweep.points[0].label == "none"


def test_optuna_is_loaded_by_nothing_but_tuning():
    import subprocess

    code = (
        "import evengrad.trial, evengrad.cli._commands, sys; print([name for name in sys.modules if name == 'optuna'])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "[]"
