"""What the rules find is said while the run goes on: once, in one line, and nothing on a healthy run."""

import importlib
import logging
import math

import pytest
import torch
from torch import nn

from evengrad.diagnose import in_one_line
from evengrad.guard import Guard
from evengrad.guard._voice import Voice
from evengrad.nouns import Finding, Record


def finding(code="EG101", severity="warning", **fields):
    settings = {
        "symptom": "vanishing with depth",
        "where": ("0", "2"),
        "when": (1, 7),
        "message": "7 decades",
        **fields,
    }
    return Finding(code=code, severity=severity, **settings)


@pytest.fixture
def judged(monkeypatch):
    """Let the rules say what a test wants."""
    found = []
    monkeypatch.setattr(importlib.import_module("evengrad.diagnose"), "findings_of", lambda record: tuple(found))
    return found


def test_each_finding_is_told_once_and_again_when_its_severity_changes(judged, caplog):
    voice = Voice(tell=True)
    now_and_then = [finding()], [finding()], [finding(severity="critical")], [], [finding()], [finding()]
    for now in (*now_and_then, [finding("EG102")], [finding("EG102")]):
        judged[:] = now
        voice.judge(Record)
    codes = [record.getMessage().split(" at ")[0] for record in caplog.records]
    assert codes == [
        "EG101 vanishing with depth (warning)",
        "EG101 vanishing with depth (critical)",
        "EG101 vanishing with depth (warning)",
        "EG102 vanishing with depth (warning)",
    ]
    assert {record.name for record in caplog.records} == {"evengrad.guard"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_what_may_pass_is_told_when_two_judgements_in_a_row_have_come_to_it(judged, caplog):
    voice, counts = Voice(tell=True), []
    for now in ([finding()], [], [finding()], [finding()]):
        judged[:] = now
        voice.judge(Record)
        counts.append(len(caplog.records))
    assert counts == [0, 0, 0, 1]


def test_what_is_wrong_in_any_case_is_told_at_once(judged, caplog):
    judged[:] = [finding("EG201"), finding("EG101")]
    Voice(tell=True).judge(Record)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["EG201"]


def test_what_is_told_is_the_line_that_diagnose_writes_and_cannot_steer_a_terminal(judged, caplog):
    where = tuple(f"\x1b[2Jlayer\n{number}" for number in range(40))
    judged[:] = [finding("EG201", where=where, message="a\nb")]
    Voice(tell=True).judge(Record)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{in_one_line(judged[0])}; evengrad explain EG201"
    assert line.startswith("EG201 vanishing with depth (warning) at ")
    assert line.isprintable()
    assert "more" in line


def test_the_rules_judge_after_8_32_100_300_and_then_every_1000_steps():
    voice = Voice(tell=True)
    assert [step for step in range(1, 3001) if voice.heard(burst_ends=False)] == [8, 32, 100, 300, 1000, 2000, 3000]


def test_where_there_are_very_many_layers_they_judge_less_often_at_first():
    voice = Voice(tell=True)
    due = [step for step in range(1, 1101) if voice.heard(burst_ends=False, size=20_000 * (step in {1, 25}))]
    assert due == [8, 300, 1000]


def test_they_judge_after_a_burst_but_not_within_200_steps_of_the_last_time():
    voice = Voice(tell=True)
    due = [step for step in range(1, 800) if voice.heard(burst_ends=step in {50, 150, 250, 310, 520, 600, 730})]
    assert due == [8, 32, 100, 300, 520, 730]


def test_with_tell_false_they_never_judge():
    voice = Voice(tell=False)
    assert not any(voice.heard(burst_ends=True) for _ in range(2000))


def test_a_rule_that_fails_ends_the_messages_and_not_the_run(monkeypatch, caplog):
    def broken(record):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(importlib.import_module("evengrad.diagnose"), "findings_of", broken)
    voice = Voice(tell=True)
    voice.judge(Record)
    assert [record.getMessage() for record in caplog.records] == [
        "no more messages of the rules: ZeroDivisionError: division?by zero"
    ]
    assert not any(voice.heard(burst_ends=True) for _ in range(2000))


def vanishing():
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(32, 2))


def trained(model, steps, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, **settings) as guard:
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(64, model[0].in_features, generator=generator)
            optimizer.zero_grad()
            guard.loss(nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())).backward()
            optimizer.step()
    return guard


def test_a_network_that_vanishes_is_told_of_after_32_steps_and_not_again(caplog):
    guard = trained(vanishing(), 100)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("EG101")]
    assert len(told) == 1
    assert told[0] in {f"{in_one_line(one)}; evengrad explain EG101" for one in guard.findings()}
    assert any(one.code == "EG101" for one in guard.findings())
    caplog.clear()
    trained(vanishing(), 31)
    assert caplog.records == []


def test_a_healthy_run_says_nothing(caplog):
    torch.manual_seed(0)
    trained(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2)), 110)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO] == []


def test_a_run_that_is_only_watched_says_when_it_has_turned_into_nan(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Guard(model, optimizer, clip=False):
        for step in range(40):
            optimizer.zero_grad()
            x = torch.full((4, 4), math.nan if step == 20 else 1.0)
            model(x).square().mean().backward()
            optimizer.step()
    assert any("EG20" in record.getMessage() for record in caplog.records)
