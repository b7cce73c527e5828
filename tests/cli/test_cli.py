"""The command line: exit statuses, one clear line for every mistake, JSON."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from evengrad.cli import main
from evengrad.runlog import is_run, read, read_story

HERE = Path(__file__).parents[2]
TASK = """
    import torch
    from torch import nn
    import evengrad

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 16, generator=generator)
    labels = inputs[:, :4].argmax(1)

    def network(activation, depth):
        layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
        return nn.Sequential(*layers, nn.Linear(16, 4))

    def task(model, **more):
        settings = dict(
            model=model,
            optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=5e-3),
            loss=nn.functional.cross_entropy,
            train=lambda: [(inputs, labels)],
            validate=lambda model: (model(inputs).argmax(1) == labels).float().mean().item(),
            steps=40,
        )
        return evengrad.Task(**(settings | more))

    sick = task(lambda: network(nn.Sigmoid, 12))
    healthy = task(lambda: network(nn.ReLU, 2), steps=160)
    def made(): return healthy
    def raises(): return {}["nothing"]
    def no_task(): return 3
    def half(): return evengrad.Task(model=3)
    no_batches = task(lambda: network(nn.ReLU, 2), train=lambda: [])
    no_model = task(lambda: nn.ReLU())
    model_raises = task(lambda: 1 / 0)
    bad_labels = task(lambda: network(nn.ReLU, 2), train=lambda: [(inputs, labels + 9)])
    number = 3
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "tasks.py"
    file.write_text(textwrap.dedent(TASK))
    return str(file)


def run(*args, **settings):
    command = [sys.executable, "-m", "evengrad", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, **settings)


def test_checkup_of_the_sick_example_names_the_fault_and_its_cause_and_exits_1(capsys):
    assert main(["checkup", str(HERE / "examples" / "digits.py") + ":sick"]) == 1
    said = capsys.readouterr().out
    assert "EG101 vanishing with depth (critical)" in said
    assert "alone brings it from" in said


def test_checkup_of_the_healthy_example_exits_0(capsys):
    assert main(["checkup", str(HERE / "examples" / "digits.py") + ":healthy"]) == 0
    assert "no findings" in capsys.readouterr().out


def test_a_function_that_returns_a_task_and_a_module_are_found_too(tasks, capsys, monkeypatch, tmp_path):
    assert main(["checkup", f"{tasks}:made"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["checkup", "tasks:made"]) == 0
    assert capsys.readouterr().out.count("no findings") == 2


def test_checkup_as_json(tasks, capsys):
    assert main(["checkup", f"{tasks}:sick", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in said["findings"]] == ["EG402", "EG101"]
    assert len(said["reading"]["layers"]) == 25


def test_checkup_without_counterfactuals(tasks, capsys):
    assert main(["checkup", f"{tasks}:sick", "--no-counterfactuals", "--json"]) == 1
    *_, finding = json.loads(capsys.readouterr().out)["findings"]
    assert not any(cure["tried"] for cure in finding["cures"])


def test_checkup_writes_a_page(tasks, tmp_path):
    assert main(["checkup", f"{tasks}:sick", "-o", str(tmp_path / "page.html")]) == 1
    assert "EG101" in (tmp_path / "page.html").read_text()


def test_repair_then_report_tell_the_same_story(tasks, tmp_path, capsys):
    log, page = tmp_path / "run", tmp_path / "page.html"
    assert main(["repair", f"{tasks}:sick", "--seeds", "2", "--log", str(log), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["outcome"] == "cured"
    assert main(["diagnose", str(log)]) == 2, "no readings are no health"
    assert "want one of them: treated, untreated" in capsys.readouterr().err
    assert main(["report", str(log), "-o", str(page), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == told
    assert "cured" in page.read_text()


def test_repair_of_a_healthy_task_exits_0_and_says_that_it_writes_no_patch(tasks, tmp_path, capsys):
    patch = tmp_path / "cure.patch"
    assert main(["repair", f"{tasks}:healthy", "--patch", str(patch)]) == 0
    assert not patch.exists()
    told = capsys.readouterr()
    assert "was not sick" in told.out
    assert f"no cure, so {patch} was not written" in told.err


def test_the_report_of_a_guarded_run_needs_no_torch(tmp_path):
    script = textwrap.dedent(
        """
        import sys, torch, evengrad
        from torch import nn
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with evengrad.Guard(model, optimizer, log=sys.argv[1], sample_every_steps=None) as guard:
            for step in range(20):
                optimizer.zero_grad()
                loss = guard.loss(model(torch.ones(4, 3)).square().mean())
                loss.backward()
                optimizer.step()
        """
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=True, cwd=HERE)
    without = (
        "import sys; from evengrad.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    args = ["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]
    done = subprocess.run([sys.executable, "-c", without, *args], capture_output=True, text=True, check=False, cwd=HERE)
    assert done.returncode == 0, done.stderr
    assert "gradient norms only" in done.stdout
    assert "weight" in (tmp_path / "page.html").read_text()


def test_explain_prints_the_page_of_a_rule(capsys):
    assert main(["explain", "eg103"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("EG103 Vanishing through time")
    assert all(heading in said for heading in ("Sees:", "Hurts:", "Cure:", "False alarms:", "Source:"))
    assert main(["explain", "EG103", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["code"] == "EG103"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["checkup", "nowhere.py:task"], "file nowhere.py: got no such file"),
        (["checkup", "TASKS"], "want FILE:NAME or MODULE:NAME"),
        (["checkup", "no.such.module:task"], "module no.such.module: got no such module"),
        (["checkup", "TASKS:nope"], "want one of its names: bad_labels, healthy"),
        (["checkup", "TASKS:number"], "got int, want an evengrad.Task"),
        (["checkup", "TASKS:no_task"], "a function that returned int"),
        (["checkup", "TASKS:raises"], "KeyError: 'nothing'"),
        (["checkup", "TASKS:half"], "missing 5 required keyword-only arguments"),
        (["checkup", "TASKS:no_batches"], "Task.train(): got no batch"),
        (["checkup", "TASKS:no_model"], "ReLU without parameters"),
        (["checkup", "TASKS:bad_labels"], "got labels from 9 to 12, want labels from 0 to 3"),
        (["repair", "TASKS:model_raises"], "ZeroDivisionError"),
        (["repair", "TASKS:sick", "--seeds", "0"], "seeds: got 0"),
        (["repair", "TASKS:sick", "--budget", "3"], "budget: got 3"),
        (["report", "TASKS"], "want a run directory"),
        (["report", "nothing-there"], "want a run directory"),
        (["explain", "EG999"], "got 'EG999', want one of EG101"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_status_2(args, said, tasks, capsys):
    assert main([arg.replace("TASKS", tasks) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("evengrad: error: ")
    assert captured.err.count("\n") == 1


def test_an_error_in_the_users_file_names_the_line(tmp_path, capsys):
    file = tmp_path / "broken.py"
    file.write_text("x = 1\ny = undefined_name\n")
    assert main(["checkup", f"{file}:task"]) == 2
    assert "NameError: name 'undefined_name' is not defined (broken.py, line 2)" in capsys.readouterr().err
    file.write_text("def task(:\n")
    assert main(["checkup", f"{file}:task"]) == 2
    assert "SyntaxError" in capsys.readouterr().err
    file.write_text("raise SystemExit('no')\n")
    assert main(["checkup", f"{file}:task"]) == 2
    assert "SystemExit: no" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["frobnicate"], ["checkup"], ["repair", "a:b", "--seeds", "many"], []])
def test_wrong_usage_is_exit_status_2_without_a_traceback(args):
    done = run(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "checkup", "repair", "report", "explain"))


def test_a_repair_that_is_killed_leaves_its_story_and_its_log(tasks, tmp_path):
    log = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "evengrad", "repair", f"{tasks}:sick", "--log", str(log)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=HERE,
    )
    try:
        while process.poll() is None and not (is_run(log) and (read_story(log) or NOTHING).trials):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    story = read_story(log)
    assert story.trials[0].label == "untreated"
    assert any("killed" in note for note in story.notes)
    assert main(["report", str(log), "-o", str(tmp_path / "page.html")]) == (1 if story.findings else 0)


def test_a_guarded_run_that_is_killed_can_be_reported(tmp_path):
    script = textwrap.dedent(
        """
        import sys, torch, evengrad
        from torch import nn
        model = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        guard = evengrad.Guard(model, optimizer, log=sys.argv[1])
        step = 0
        while True:
            optimizer.zero_grad()
            guard.loss(model(torch.ones(4, 3)).square().mean()).backward()
            optimizer.step()
            step += 1
            if step == 200:
                print("200 steps", flush=True)
        """
    )
    log, page = tmp_path / "run", tmp_path / "page.html"
    process = subprocess.Popen([sys.executable, "-c", script, str(log)], stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        assert process.stdout.readline() == "200 steps\n"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    record = read(log, live=True)
    assert not record.complete
    assert "did not end" in record.note
    assert len(record.readings) >= 200 - 50, "at most one batch of 50 steps was not flushed"
    assert [reading.step for reading in record.readings] == list(range(len(record.readings)))
    assert main(["report", str(log), "-o", str(page)]) == 0
    assert "did not end" in page.read_text()


class NOTHING:
    trials = ()


@pytest.mark.slow
def test_the_demo_cures_three_networks_and_writes_its_page(tmp_path):
    done = run("demo", "-o", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    stories = json.loads(done.stdout)["stories"]
    assert [story["verdict"]["outcome"] for story in stories] == ["cured"] * 3
    assert all(min(story["verdict"]["metric_after"]) >= 0.9 for story in stories), "of guessing it is about a tenth"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(story["findings"][0]["code"] in page for story in stories)
