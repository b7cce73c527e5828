"""The terminal: the same content as the page, and nothing that a name could do to it."""

import re

import pytest

from evengrad.nouns import Cure, Curve, Evidence, Finding, HeatMap, Story, Trial, Verdict
from evengrad.report import bar, text

NAN = float("nan")


def flat(told):
    """Join what the terminal wrapped: borders and line ends go."""
    return "".join(re.sub("[│\n ]", "", told).split())


def test_everything_of_a_story_is_told(sample):
    told = flat(text(sample, width=160))
    wanted = [sample.title, sample.headline, sample.code, sample.verdict.message, sample.verdict.label, *sample.notes]
    for finding in sample.findings:
        wanted += [finding.message, finding.cause, finding.source, f"evengrad explain {finding.code}", finding.severity]
        wanted += [str(item) for item in finding.evidence]
        wanted += [cure.label for cure in finding.cures] + [cure.change for cure in finding.cures]
    wanted += [*sample.changes, *(name for fact in sample.facts for name in fact)]
    wanted += [heat_map.title for heat_map in sample.heat_maps] + [curve.label for curve in sample.curves]
    assert not [item for item in wanted if flat(item) not in told]


def test_every_trial_has_its_row(sample):
    lines = text(sample, width=160).splitlines()
    for trial in sample.trials:
        first = trial.label.split("(")[0]
        assert [line for line in lines if first in line and trial.stage in line and f" {trial.duration_s:.1f} " in line]


@pytest.mark.parametrize("width", [40, 80, 132])
def test_no_line_is_wider_than_asked(sample, width):
    without_code = [line for line in text(sample, width=width).splitlines() if "Sigmoid" not in line]
    assert max(map(len, without_code)) <= width


def test_names_are_never_markup_and_never_escape_sequences(nasty):
    told = text(nasty, width=160)
    assert "[bold]x[/bold]" in told
    assert "␛[31mred" in told
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", told)
    told.encode("utf-8")


def test_markup_stays_as_written_in_every_field():
    cure = Cure(treatment="[red]1[/]", tried=True, before_decades=1.0, after_decades=0.5, change="[red]2[/]")
    finding = Finding(
        code="[red]3[/]",
        symptom="[red]4[/]",
        severity="warning",
        where=("[red]5[/]",),
        message="[red]6[/]",
        evidence=(Evidence(name="[red]7[/]", value=1.0, unit="[red]8[/]"),),
        cause="[red]9[/]",
        cures=(cure, Cure(treatment="[red]10[/]", change="[red]11[/]")),
        source="[red]12[/]",
    )
    trial = Trial(label="[red]13[/]", seed=0, steps=1, stage="[red]14[/]", findings=("[red]15[/]",), error="[red]16[/]")
    story = Story(
        title="[red]17[/]",
        headline="[red]18[/]",
        findings=(finding,),
        heat_maps=(HeatMap(title="[red]19[/]", rows=("[red]20[/]",), steps=(0, 1), values=((1.0, 2.0),)),),
        curves=(Curve(label="[red]21[/]", group="[red]22[/]", steps=(0, 1), values=(1.0, 2.0)),),
        trials=(trial,),
        verdict=Verdict(outcome="improved", label="[red]23[/]", message="[red]24[/]"),
        code="[red]25[/]",
        changes=("[red]26[/]",),
        facts=(("[red]27[/]", "[red]28[/]"),),
        notes=("[red]29[/]",),
    )
    told = text(story, width=160)
    assert not [number for number in range(1, 30) if f"[red]{number}[/]" not in told]


def test_colour_adds_only_colour(nasty):
    coloured = text(nasty, width=120, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == text(nasty, width=120).split()


def test_an_empty_story_is_two_lines():
    assert text(Story(title="a", headline="b")) == "a\n no findings  b\n"


def test_zero_and_not_finite_cells_have_signs_of_their_own():
    values = ((1e-8, 1.0, 0.0, NAN), (1e-8, 1e-8, 1e-8, 1e-8))
    heat_map = HeatMap(title="m", rows=("a", "b"), steps=(0, 1, 2, 3), values=values)
    told = text(Story(title="t", headline="h", heat_maps=(heat_map,)), width=80)
    assert "a ▁█·! 0.0e+00 to 1.0e+00" in told
    assert "b ▁▁▁▁ 1.0e-08 to 1.0e-08" in told


def test_a_deep_map_keeps_the_one_strange_row_and_counts_the_rest():
    rows = tuple(f"layer{number}" for number in range(500))
    values = tuple((1e-30, 1e-30) if number == 333 else (1.0, 1.0) for number in range(500))
    told = text(Story(title="t", headline="h", heat_maps=(HeatMap(title="m", rows=rows, steps=(0, 1), values=values),)))
    assert re.search("layer333 ▁▁", told)
    assert re.search("layer0 ██", told)
    assert told.count("layer") - told.count("by layer") == 30
    assert "470 more rows are not shown here" in told


def test_a_loss_that_breaks_says_where():
    curve = Curve(label="run 1", group="before", steps=(0, 10, 20), values=(1.0, 5.0, NAN))
    told = text(Story(title="t", headline="h", curves=(curve,)), width=100)
    assert "▁█! 1 to NaN, NaN from step 20" in told


def test_more_than_the_text_holds_is_counted():
    finding = Finding(code="EG101", symptom="fault", severity="warning", where=())
    trial = Trial(label="untreated", seed=0, steps=1, stage="scout")
    told = text(Story(title="t", headline="h", findings=(finding,) * 202, trials=(trial,) * 1004), width=100)
    assert told.count("EG101 fault") == 200
    assert "2 more findings are not shown here" in told
    assert "4 more trials are not shown here" in told


@pytest.mark.parametrize(
    ("decades", "blocks"), [(0.0, 0), (NAN, 0), (5.0, 5), (-5.0, 5), (99.0, 10), (float("inf"), 10)]
)
def test_a_bar_has_a_block_for_each_tenth(decades, blocks):
    drawn = bar(decades, full_decades=10.0, width=10)
    assert drawn.count("█") == blocks
    assert len(drawn) == 10
