"""How the command line ends when something gives way: Ctrl-C, standard output, the page's place."""

import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest

from evengrad.cli import main
from evengrad.nouns import Reading, RunLogError
from evengrad.runlog import Writer

TASK = """
    import os, signal
    import torch
    from torch import nn
    import evengrad

    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    labels = inputs[:, :2].argmax(1)
    calls = []

    class Net(nn.Sequential):
        def forward(self, x):
            calls.append(1)
            if len(calls) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x)

    def network():
        layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
        return Net(*layers, nn.Linear(8, 2))

    def task():
        calls.clear()
        return evengrad.Task(
            model=network,
            optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=5e-3),
            loss=nn.functional.cross_entropy,
            train=lambda: [(inputs, labels)],
            validate=lambda model: 0.5,
            steps=40,
        )
"""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A task that presses Ctrl-C in its twelfth forward."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "stopped.py"
    file.write_text(textwrap.dedent(TASK))
    return f"{file}:task"


@pytest.fixture
def run_directory(tmp_path):
    log = Writer(tmp_path / "run", parameters=("weight",))
    for step in range(3):
        log.append(Reading(step=step, grad_norms=(1.0,)))
    log.close()
    return str(tmp_path / "run")


def shell(line):
    return subprocess.run(
        ["bash", "-c", line.replace("evengrad", f"{sys.executable} -m evengrad", 1)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interrupted_repair_tells_and_writes_what_it_found_and_exits_130(stopped, tmp_path, capsys, as_json):
    page = tmp_path / "page.html"
    assert main(["repair", stopped, "--seeds", "1", "-o", str(page), *(["--json"] if as_json else [])]) == 130
    captured = capsys.readouterr()
    assert captured.err.endswith("evengrad: interrupted\n")
    told = json.loads(captured.out)["notes"] if as_json else captured.out
    assert "interrupted" in str(told)
    assert '<span class="badge warn">interrupted</span>' in page.read_text()
    assert "not cured" not in page.read_text()


def test_an_interrupted_demo_tells_and_writes_what_it_found_and_exits_130(stopped, tmp_path, capsys, monkeypatch):
    from evengrad.cli import _demo, _load

    monkeypatch.setattr(_demo, "STORIES", (("one", lambda: _load.load_task(stopped)), ("two", pytest.fail)))
    assert main(["demo", "-o", str(tmp_path / "demo"), "--json"]) == 130
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["stories"]) == 1
    assert captured.err == "evengrad: interrupted\n"
    assert '<span class="badge warn">interrupted</span>' in (tmp_path / "demo" / "report.html").read_text()


def test_the_last_lines_of_a_demo_call_what_was_interrupted_so(stopped, tmp_path, capsys, monkeypatch):
    from evengrad.cli import _demo, _load

    monkeypatch.setattr(_demo, "STORIES", (("one", lambda: _load.load_task(stopped)), ("two", pytest.fail)))
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 130
    said = capsys.readouterr().out
    assert "\ninterrupted: " in said
    assert "not cured" not in said


@pytest.mark.parametrize("module", ["tyro", "rich", "evengrad.nouns", "torch"])
def test_ctrl_c_during_an_import_is_one_line_and_exit_status_130(module):
    script = f"""
        import sys
        class CtrlC:
            def find_spec(self, name, path, target=None):
                if name == {module!r}:
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, CtrlC())
        from evengrad.cli import main
        sys.exit(main(["checkup", "nothing.py:task"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "evengrad: interrupted\n")


@pytest.mark.parametrize("command", ["explain EG101", "explain EG101 --json", "--help", "--version"])
def test_a_full_standard_output_is_one_line_and_exit_status_2(command):
    done = shell(f"evengrad {command} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("evengrad: error: standard output: got OSError: [Errno 28]")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["explain EG101", "--help", "repair nothing.py:task"])
def test_a_closed_standard_output_is_one_line_and_exit_status_2(command):
    done = shell(f"evengrad {command} >&-")
    assert done.returncode == 2
    assert done.stderr.startswith("evengrad: error: standard output: got a closed one")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("broken", ["2>&-", "2>/dev/full"])
def test_a_broken_standard_error_changes_no_exit_status(broken, run_directory, tmp_path):
    assert shell(f"evengrad explain EG999 {broken}").returncode == 2
    done = shell(f"evengrad report {run_directory} -o {tmp_path}/page.html {broken}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 steps" in done.stdout


def test_a_reader_that_went_away_changes_no_exit_status_and_the_page_is_written(run_directory, tmp_path):
    for command, status in (
        (f"report {run_directory} -o {tmp_path}/page.html", 0),
        ("explain EG101", 0),
        ("--help", 0),
    ):
        done = shell(f"(evengrad {command}; echo status $? >&2) | true")
        assert done.stderr == f"status {status}\n"
    assert "3 steps" in (tmp_path / "page.html").read_text()


def test_a_page_is_written_also_when_the_result_cannot_be_printed(run_directory, tmp_path):
    done = shell(f"evengrad report {run_directory} -o {tmp_path}/page.html > /dev/full")
    assert done.returncode == 2
    assert "3 steps" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("command", ["checkup", "repair", "report"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere/page.html", "got a folder that does not exist"),
        (".", "got a folder, want the name of a file"),
        ("pipe", "got a pipe, want a file"),
    ],
)
def test_a_page_that_cannot_be_written_is_said_before_the_work(command, place, said, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    # the work itself would fail on this name, with another message
    assert main([command, "no-such-thing.py:task", "-o", str(tmp_path / place)]) == 2
    assert said in capsys.readouterr().err


def test_the_demo_looks_at_its_place_before_the_work(tmp_path, capsys, monkeypatch):
    from evengrad.cli import _demo

    monkeypatch.setattr(_demo, "STORIES", (("one", pytest.fail),))
    (tmp_path / "report.html").mkdir()
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "got a folder, want the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["checkup", "repair", "report"])
def test_a_result_is_told_although_its_page_cannot_be_written(command, run_directory, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise RunLogError("page.html", came="a full disk", wanted="room")

    monkeypatch.setattr("evengrad.report._page.write_whole", full)
    monkeypatch.setattr(sys, "path", [*sys.path])
    digits = str(Path(__file__).parents[2] / "examples" / "digits.py") + ":healthy"
    target = {"report": [run_directory], "checkup": [digits], "repair": [healthy(tmp_path), "--seeds", "1"]}[command]
    assert main([command, *target, "-o", str(tmp_path / "page.html"), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert captured.err == "evengrad: error: page.html: got a full disk, want room\n"


def healthy(folder):
    text = textwrap.dedent(TASK).replace("range(6)", "range(1)").replace("Sigmoid", "ReLU").replace("== 12", "< 0")
    (folder / "healthy.py").write_text(text)
    return str(folder / "healthy.py") + ":task"


def test_a_torn_log_is_a_note_of_the_report_and_no_warning(run_directory, tmp_path, capsys):
    (steps,) = Path(run_directory).glob("*.steps.arrows")
    steps.write_bytes(steps.read_bytes()[:-20])
    assert main(["report", run_directory, "-o", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert "bytes" in captured.out
    assert captured.err == ""


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"evengrad {version('evengrad')}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Expected one of {demo, checkup, repair, tune, run, diagnose, report, explain}"),
        (["chekup", "a:b"], "Unrecognized options: chekup, a:b; available subcommands: demo, checkup"),
        (["checkup"], "Missing from evengrad checkup: FILE:TASK"),
        (["checkup", "a:b", "--sed", "1"], "Unrecognized options: --sed, 1; perhaps you meant --seed"),
        (["repair", "a:b", "--seeds", "many", "--json"], "Error parsing --seeds: invalid literal"),
    ],
)
def test_wrong_usage_is_one_clear_line(args, said, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "evengrad", *args],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"evengrad: error: {said}")
    assert done.stderr.endswith("; see evengrad --help\n")
    assert done.stderr.count("\n") == 1
