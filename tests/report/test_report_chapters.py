"""Several stories on one page, and heat maps over other things than layers and steps."""

import re
from html.parser import HTMLParser

import pytest

from evengrad.nouns import Cure, Finding, HeatMap, SettingError, Story, Verdict
from evengrad.report import page, text, write


def story(number, **more):
    finding = Finding(
        code="EG101",
        symptom="vanishing with depth",
        severity="critical",
        where=("fc",),
        message=f"message {number}",
        cures=(
            Cure(treatment="AddResidual", tried=True, before_decades=7.0, after_decades=1.0, removes=True),
            Cure(treatment="ClipGradients", change="acts on the training"),
            Cure(treatment="ScaleLearningRate", change="acts on the training"),
        ),
    )
    heat = HeatMap(title=f"heat {number}", rows=("a", "b"), steps=(0, 1), values=((1e-9, 1e-8), (1.0, 2.0)))
    settings = {
        "title": f"title {number}",
        "headline": f"headline {number}",
        "findings": (finding,),
        "heat_maps": (heat,),
        "verdict": Verdict(outcome="cured", label="AddResidual()", message=f"verdict {number}"),
        "code": f"code = {number}",
    }
    return Story(**(settings | more))


class Outline(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.headings = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []


def test_every_story_is_a_chapter_with_all_its_parts():
    html = page(story(1), story(2), story(3), title="three of them")
    assert "<h1>three of them</h1>" in html
    for number in (1, 2, 3):
        for part in ("title", "headline", "message", "heat", "verdict"):
            assert f"{part} {number}" in html
        assert f"code = {number}" in html
    assert html.count('id="plotly-packed"') == 1
    assert re.findall(r'data-figure="(\d+)"', html) == ["0", "1", "2"]


@pytest.mark.parametrize("count", [1, 3])
def test_ids_are_unique_links_lead_somewhere_and_headings_are_in_order(count):
    outline = Outline(page(*(story(number) for number in range(count)), title="some"))
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.links
    assert set(outline.links) <= set(outline.ids)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(two - one <= 1 for one, two in zip(outline.headings, outline.headings[1:], strict=False))


def test_no_story_is_an_error():
    with pytest.raises(SettingError, match="stories: got none"):
        page()


def test_several_stories_are_written_to_one_file(tmp_path):
    path = write([story(1), story(2)], tmp_path / "two.html", title="two of them")
    assert "two of them" in path.read_text()


def test_axes_of_a_heat_map_are_named_where_it_is_shown():
    heat = HeatMap(
        title="over time",
        rows=("step 0", "step 8"),
        steps=(0, 1, 2),
        values=((1e-9, 1e-5, 1.0),) * 2,
        row_axis="training step",
        column_axis="time <b>step",
    )
    html = page(Story(title="t", headline="h", heat_maps=(heat,)))
    assert "first training step at the top; time &lt;b&gt;step 0 to 2" in html
    assert '<th scope="col" class="t">training step</th>' in html
    assert "<b>step" not in html
    assert "time <b>step 0 to 2" in text(Story(title="t", headline="h", heat_maps=(heat,)))


def test_maps_of_another_kind_have_another_colour_scale():
    layers = HeatMap(title="l", rows=("a", "b"), steps=(0, 1), values=((1.0, 10.0),) * 2)
    time = HeatMap(title="t", rows=("a", "b"), steps=(0, 1), values=((1e-20, 1e-10),) * 2, column_axis="time step")
    told = text(Story(title="t", headline="h", heat_maps=(layers, time)))
    assert "▁ 10^0.0 to █ 10^1.0" in told
    assert "▁ 10^-20.0 to █ 10^-10.0" in told


def test_cures_that_were_not_tried_stand_together_with_their_reason():
    told = text(story(1), width=160)
    assert "ClipGradients(), ScaleLearningRate(): acts on the training" in told
    html = page(story(1))
    assert html.count("acts on the training") == 1
    assert "<code>ClipGradients()</code>, <code>ScaleLearningRate()</code>: acts on the training" in html
