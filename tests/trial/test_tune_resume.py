"""A sweep outlives a kill: what has finished stays, what was running is run anew."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from tuned_tasks import exploding, healthy

import evengrad
from evengrad.nouns import NotARunError, RunLogError, SettingError
from evengrad.runlog import read_story
from evengrad.trial._sweep import JOURNAL, opened

HERE = Path(__file__).parent
KILLED = """
    import os, signal, sys
    import evengrad
    from evengrad.trial._training import Training
    from tuned_tasks import exploding

    trained, advance = 0, Training.advance

    def counted(self, plan, tick):
        global trained
        trained += 1
        if trained == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(sys.argv[3], "a") as file:
            file.write(f"{plan.stage} {plan.seed} {plan.label} {plan.end}\\n")
        return advance(self, plan, tick)

    Training.advance = counted
    evengrad.tune(exploding(), trials=11, seeds=2, policies=("ByGlobalNorm", "ByPercentile"), log=sys.argv[1])
"""


def bare(result):
    return [replace(point, duration_s=0.0) for point in result.sweep.points]


def killed_after(parts, folder, note):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(parts), str(note)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_sweep_that_was_killed_goes_on_with_the_training_that_it_was_in(tmp_path):
    folder, note = tmp_path / "log", tmp_path / "note"
    for parts in (8, 15):  # killed twice, in the middle of a training: of the list, and of what the sampler draws
        assert killed_after(parts, folder, note).returncode == -signal.SIGKILL
    again = killed_after(10**6, folder, note)
    assert again.returncode == 0, again.stderr
    story = read_story(folder)
    whole = evengrad.tune(exploding(), trials=11, seeds=2, policies=("ByGlobalNorm", "ByPercentile"))
    resumed = [replace(point, duration_s=0.0) for point in story.sweep.points]
    assert resumed == bare(whole), "as if it had never been killed"
    ends = [line for line in note.read_text().splitlines() if line.endswith(" 48") and not line.startswith("scout")]
    assert len(ends) == len(set(ends)), "what has finished is not run again"


def test_a_sweep_that_is_over_is_not_run_again_and_can_be_made_longer(tmp_path, monkeypatch):
    short = evengrad.tune(healthy(), trials=5, seeds=2, log=tmp_path)
    from evengrad.trial._here import Here

    plans, of_engine = [], Here.run

    def noted(self, wanted, tick):
        plans.extend(wanted)
        return of_engine(self, wanted, tick)

    monkeypatch.setattr(Here, "run", noted)
    again = evengrad.tune(healthy(), trials=5, seeds=2, log=tmp_path)
    assert not plans
    assert again.sweep == short.sweep
    longer = evengrad.tune(healthy(), trials=7, seeds=2, log=tmp_path)
    swept = [point for point in longer.sweep.points if point.stage == "sweep"]
    assert len(swept) == 7
    assert swept[:5] == [point for point in short.sweep.points if point.stage == "sweep"]
    assert {plan.label for plan in plans if plan.stage == "sweep"} <= {point.label for point in swept[5:]}


@pytest.mark.parametrize(
    "other",
    [
        lambda: healthy(steps=47),
        lambda: replace(healthy(), name="another"),
        lambda: replace(healthy(), model=exploding().model),
        lambda: healthy(clip=1.0),
    ],
    ids=["steps", "name", "model", "clip"],
)
def test_the_journal_of_another_task_is_refused_and_left_as_it_was(tmp_path, other):
    evengrad.tune(healthy(), trials=2, seeds=2, log=tmp_path)
    before = (tmp_path / "story.json").read_bytes()
    with pytest.raises(SettingError, match="log: got the journal of another sweep"):
        evengrad.tune(other(), trials=2, seeds=2, log=tmp_path)
    assert (tmp_path / "story.json").read_bytes() == before


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(NotARunError, match=r"thesis\.tex|a run"):
        evengrad.tune(healthy(), trials=2, seeds=2, log=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_line_that_a_kill_has_cut_off_is_taken_away(tmp_path):
    evengrad.tune(healthy(), trials=3, seeds=2, log=tmp_path)
    journal = tmp_path / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "work')
    result = evengrad.tune(healthy(), trials=4, seeds=2, log=tmp_path)
    assert len([point for point in result.sweep.points if point.stage == "sweep"]) == 4
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_journal_that_is_none_is_one_clear_error(tmp_path):
    evengrad.tune(healthy(), trials=2, seeds=2, log=tmp_path)
    (tmp_path / JOURNAL).write_text("no journal\nat all\n")
    with pytest.raises(RunLogError, match=r"sweep\.journal"):
        evengrad.tune(healthy(), trials=2, seeds=2, log=tmp_path)


def test_two_sweeps_do_not_write_one_journal(tmp_path):
    pytest.importorskip("fcntl")
    with (
        opened(tmp_path),
        pytest.raises(SettingError, match="another sweep is writing"),
        opened(tmp_path),
    ):
        pass
