"""Roots and what follows from them, in the terminal, on the page and in the headline."""

import re
from dataclasses import replace

from evengrad.nouns import Finding, Story, Verdict
from evengrad.report import text, write
from evengrad.report._headline import headline_of

ROOT = Finding(code="EG701", symptom="raw input", severity="critical", where=("input",), message="too large")
BELOW = Finding(
    code="EG301",
    symptom="dead units",
    severity="warning",
    where=("1",),
    follows=("EG701",),
    look_at="<b>net.py:3</b> in Net.forward",
)


def told(tmp_path):
    story = Story(title="run", headline="", findings=(ROOT, BELOW))
    return text(story, width=100), write(story, tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_follows_is_set_in_below_its_root_and_names_it(tmp_path):
    terminal, page = told(tmp_path)
    root = next(line for line in terminal.splitlines() if "EG701 raw input" in line)
    below = next(line for line in terminal.splitlines() if "EG301 dead units" in line)
    assert len(below) - len(below.lstrip()) > len(root) - len(root.lstrip())
    assert re.search(r"follows from +EG701", terminal)
    assert page.count('<article class="card is-critical">') == 1
    assert page.count('<article class="card is-warning is-below">') == 1
    assert "<dt>Follows from</dt><dd><code>EG701</code></dd>" in page


def test_the_line_of_code_to_look_at_is_shown_and_escaped(tmp_path):
    terminal, page = told(tmp_path)
    assert "net.py:3" in terminal
    assert "&lt;b&gt;net.py:3&lt;/b&gt; in Net.forward" in page
    assert "<b>net.py:3" not in page


def test_the_headline_names_the_roots_and_counts_the_rest():
    assert headline_of((ROOT, BELOW), 9) == "2 findings in 9 steps: raw input (critical), and 1 that follows"
    many = (ROOT, *[replace(BELOW, code=f"EG{number}") for number in range(3)])
    assert headline_of(many, 9) == "4 findings in 9 steps: raw input (critical), and 3 that follow"


def test_what_nobody_has_trained_is_not_called_failed():
    healthy = Verdict(outcome="was not sick", metric_before=(0.9,), message="fine")
    story = Story(title="t", headline="h", verdict=healthy)
    assert "failed" not in text(story)
    failed = Verdict(outcome="not cured", metric_before=(0.1,), metric_after=(None,), seeds=(2,), message="m")
    assert "failed" in text(Story(title="t", headline="h", verdict=failed))
