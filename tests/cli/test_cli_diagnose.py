"""`evengrad diagnose`: exit statuses, choosing rules, JSON, and beside a training that goes on."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from evengrad.cli import main
from evengrad.diagnose import rules
from evengrad.nouns import LayerReading, Reading
from evengrad.runlog import Writer

HEALTHY = (1.0, 1.0, 1.0, 1.0)
VANISHED = (1e-6, 1e-4, 1e-2, 1.0)


def reading(step, grads=HEALTHY, dead=0.0):
    layers = [
        LayerReading(name=f"fc{place}", kind="Linear", weighted=True, numel=1, activation_rms=1.0, grad_rms=grad)
        for place, grad in enumerate(grads)
    ]
    act = LayerReading(name="act", kind="ReLU", nonlinearity="relu", units=9, observations=64, dead_frac=dead)
    return Reading(step=step, layers=(*layers, act))


def write(directory, *readings, ended=True):
    log = Writer(directory, parameters=("weight",))
    for one in readings:
        log.append(one)
    log.close(ended=ended)
    return str(directory)


@pytest.fixture
def sick(tmp_path):
    return write(tmp_path / "sick", reading(0), reading(10, VANISHED, dead=0.95), reading(20, VANISHED, dead=0.95))


def run(capsys, *words):
    status = main(["diagnose", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_healthy_run_is_status_0_and_a_sick_one_status_1(capsys, tmp_path, sick):
    status, out, _ = run(capsys, write(tmp_path / "healthy", reading(0), reading(10)))
    assert (status, out.startswith("no findings in 2 readings of ")) == (0, True)
    status, out, _ = run(capsys, sick)
    assert status == 1
    assert "EG301 dead units (warning)" in out
    assert "└ EG101 vanishing with depth (critical) at fc0, fc1, step 10" in out


def test_rules_are_selected_and_ignored_by_codes_or_their_beginnings(capsys, sick):
    status, out, _ = run(capsys, sick, "--select", "EG101")
    assert (status, "EG101" in out, "EG301" in out) == (1, True, False)
    status, out, _ = run(capsys, sick, "--ignore", "eg1,EG3")
    assert (status, "EG101" in out, "EG301" in out) == (0, False, False)
    status, out, err = run(capsys, sick, "--select", "EG1,nonsense")
    assert (status, out) == (2, "")
    assert err.startswith("evengrad: error: select: got 'nonsense'")


def test_json_holds_every_finding_with_what_it_follows_from(capsys, sick):
    status, out, _ = run(capsys, sick, "--json")
    told = json.loads(out)
    assert status == 1
    assert (told["readings"], told["complete"]) == (3, True)
    assert [(one["code"], one["follows"]) for one in told["findings"]] == [("EG301", []), ("EG101", ["EG301"])]


@pytest.mark.parametrize("words", [["no/such/run"], ["no/such/run", "--follow"]])
def test_what_is_no_run_is_an_error_in_one_line(capsys, words):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("evengrad: error: no/such/run: got nothing there")


def test_a_pause_of_nothing_is_refused(capsys, sick):
    status, _, err = run(capsys, sick, "--follow", "--every-s", "0")
    assert status == 2
    assert err.startswith("evengrad: error: every_s: got 0.0")


def test_follow_tells_each_finding_once_and_ends_with_the_run(capsys, tmp_path):
    log = Writer(tmp_path / "run", parameters=("weight",))
    log.append(reading(0))
    log.flush()
    steps = iter([reading(10, VANISHED), reading(20, VANISHED), reading(30, VANISHED, dead=1.0)])

    def train():
        for one in steps:
            log.append(one)
            log.flush()
        log.close()

    later = threading.Timer(0.3, train)
    later.start()
    status, out, _ = run(capsys, str(tmp_path / "run"), "--follow", "--every-s", "0.1", "--json")
    later.join()
    told = [json.loads(line)["finding"]["code"] for line in out.splitlines()]
    assert status == 1
    assert sorted(told) == ["EG101", "EG301"]


def test_ctrl_c_ends_the_watch_of_a_run_that_was_killed(tmp_path):
    killed = write(tmp_path / "killed", reading(0), reading(10, VANISHED), ended=False)
    words = [sys.executable, "-m", "evengrad", "diagnose", killed, "--follow", "--every-s", "0.1"]
    watch = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = watch.stdout.readline()
    os.kill(watch.pid, signal.SIGINT)
    watch.communicate(timeout=60)
    assert first.startswith("EG101 vanishing with depth")
    assert watch.returncode == 130


def test_torch_is_not_loaded(sick):
    code = f"import sys; from evengrad.cli import main; status = main(['diagnose', {sick!r}]); "
    code += "assert 'torch' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_explain_without_a_code_lists_every_rule(capsys):
    assert main(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [rule.code for rule in rules.ALL]
    assert lines[0].startswith("EG101 Vanishing with depth: ")
