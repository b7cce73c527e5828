"""A model that does not fit its batch, at the command line: one line that names the task and the batch."""

import sys
import textwrap

import pytest

from evengrad.cli import main

TASK = """
    import torch
    from torch import nn
    import evengrad

    def batches():
        return [(torch.zeros(6, 7), torch.zeros(6, 2))]

    task = evengrad.Task(
        model=lambda: nn.Linear(5, 2),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        loss=nn.functional.mse_loss,
        train=batches,
        validate=lambda model: 0.0,
        steps=8,
    )
"""


@pytest.mark.parametrize("command", [["checkup"], ["repair", "--engine", "here"]], ids=["checkup", "repair"])
def test_the_task_and_its_batch_are_named_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(TASK))
    assert main([command[0], "mine.py:task", *command[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.py:task, batch 1 (input float32 (6, 7), target float32 (6, 2)), forward of Linear: got " in line
    assert "mat1 and mat2 shapes cannot be multiplied (6x7 and 5x2)" in line
