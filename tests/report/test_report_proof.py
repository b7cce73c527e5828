"""The verdict as a reader sees it: which gain over what, sizes that are none, a search that was cut short."""

import re
from dataclasses import replace

import pytest

from evengrad.nouns import Cure, Finding, Story, Trial, Verdict, from_json, to_json
from evengrad.report import page, text

LOST = Verdict(
    outcome="not cured",
    label="X()",
    metric_before=(0.05, None),
    metric_after=(0.11, 0.10),
    metric_fresh=(0.12, 0.12),
    seeds=(2, 3),
    gain=-0.015,
    gain_interval=(-0.02, -0.01),
    message="m",
)


def both(story):
    """Tell a story to both kinds of readers, the page without its markup."""
    return [re.sub(" +", " ", text(story, width=150)), re.sub("<[^>]*>", " ", page(story))]


def rows(verdict):
    """Take the cells of the page's table of seeds."""
    table = re.search(r'aria-label="Metric and symptom per seed">(.*?)</table>', page(shown(verdict)), re.DOTALL)[1]
    table = re.sub("<svg.*?</svg>", "", table, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]


def shown(verdict, **changes):
    return Story(**({"title": "t", "headline": "h", "verdict": verdict} | changes))


def test_the_table_shows_the_floor_and_its_gains_average_to_that_of_the_verdict():
    head, *seeds, mean, _ = rows(LOST)
    assert head[:5] == ["Seed", "Metric before", "Fresh", "Metric after", "Gain"]
    assert [row[:5] for row in seeds] == [
        ["2", "0.05", "0.12", "0.11", "-0.01"],
        ["3", "failed", "0.12", "0.1", "-0.02"],
    ]
    assert mean[:5] == ["mean", "0.05", "0.12", "0.105", "-0.015"]
    for told in both(shown(LOST)):
        assert "mean gain -0.015" in told
        assert "over the better of the untreated training and of fresh models" in " ".join(told.split())
        assert "ifference" not in told
    assert re.search(r"^mean +0\.05 +0\.12 +0\.105 +-0\.015", text(shown(LOST), width=150), re.MULTILINE)


def test_a_story_of_before_the_floor_was_kept_has_a_difference_and_no_gain_of_a_seed():
    plain = to_json(shown(replace(LOST, metric_fresh=())))
    for field in ('"metric_fresh": [], ', ', "interrupted": false'):
        assert field in plain
        plain = plain.replace(field, "")
    old = from_json(Story, plain, where="here")
    assert old.verdict == replace(LOST, metric_fresh=())
    head, first, second, mean, _ = rows(old.verdict)
    assert head[:4] == ["Seed", "Metric before", "Metric after", "Difference"]
    assert [first[3], second[3], mean[3]] == ["+0.06", "–", "+0.06"]
    assert "fresh" not in text(old).replace("fresh models", "")


@pytest.mark.parametrize("outcome", ["interrupted", "not cured"])
def test_a_search_that_was_cut_short_is_badged_interrupted_and_no_other(outcome):
    cut = outcome == "interrupted"
    story = shown(replace(LOST, interrupted=cut))
    badges = re.findall(r'<span class="badge (\w+)">([^<]+)</span>', page(story))
    assert badges == [("warn" if cut else "bad", outcome)] * 2
    for told in both(story):
        assert ("not cured" in told) != cut
        assert ("interrupted" in told) == cut


def test_no_reader_is_told_of_so_many_decades_where_something_is_not_finite():
    cure = Cure(treatment="T", tried=True, before_decades=38.5, after_decades=0.4, removes=True)
    finding = Finding(code="EG201", symptom="s", severity="critical", where=(), decades=38.5, cures=(cure,))
    trial = Trial(label="untreated", seed=0, steps=1, stage="scout", symptoms=(("EG201", 38.5),))
    sizes = {"symptoms_before": (float("inf"), 5.0), "symptoms_after": (0.0, None)}
    story = shown(replace(LOST, **sizes), findings=(finding,), trials=(trial, trial))
    for told in both(story):
        assert "38.5" not in told
        assert "not finite decades" not in told
        assert "not finite" in told
    assert "not finite → 0.4 decades, symptom gone" in text(story, width=150)
    assert 'aria-label="not finite before, 0.4 after"' in page(story)
    _, *seeds, mean, span = rows(story.verdict)
    assert [row[-2:] for row in (*seeds, mean)] == [["not finite", "0.0"], ["5.0", "–"], ["not finite", "0.0"]]
    assert span[-2:] == ["5.0 to not finite", "–"]
    bars = re.findall(r'class="(?:before|after)" style="width:([\d.]+)%', page(story))
    assert [float(width) for width in bars] == pytest.approx([100.0, 1.0], abs=0.1)


def test_what_is_there_or_is_not_has_no_size():
    finding = Finding(code="EG109", symptom="s", severity="critical", where=(), decades=38.5)
    none = replace(LOST, symptoms_before=(None, None), symptoms_after=(None, None))
    for told in both(shown(none, findings=(finding,))):
        assert "38.5" not in told
        assert "Size" not in told
        assert "Largest symptom" not in told
        assert "Symptom, decades" not in told


def test_a_cure_that_a_trial_has_tried_is_not_among_those_that_were_not():
    cures = (
        Cure(treatment="A", tried=True, before_decades=7.0, after_decades=7.0, trials="failed: <b>lost</b>"),
        Cure(treatment="B", change="acts on the training", trials="won, with A()"),
        Cure(treatment="C", change="acts on the training"),
    )
    finding = Finding(code="EG101", symptom="s", severity="critical", where=(), decades=7.0, cures=cures)
    story = Story(title="t", headline="h", findings=(finding,))
    untried = re.search(r"<dt>Not tried</dt><dd>(.*?)</dd>", page(story))[1]
    assert re.findall("<code>(.*?)</code>", untried) == ["C()"]
    assert '<p class="trials">In trials: won, with A()</p>' in page(story)
    assert "In trials: failed: &lt;b&gt;lost&lt;/b&gt;" in page(story)
    told = text(story, width=120)
    assert re.search(r"not tried +C\(\): acts on the training", told)
    assert re.search(r"B\(\) +│\n│ +in trials: won, with A\(\)", told)
    assert told.count("not tried") == 1
    card = str(finding)
    assert "B(): in trials: won, with A()" in card
    assert "A(): 7.0 -> 7.0 decades, symptom still there; in trials: failed" in card
    assert "C(): acts on the training" in card
