"""The page: complete, self-contained, safe, and written whole or not at all."""

import base64
import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from plotly.offline import get_plotlyjs

from evengrad.nouns import Cure, Evidence, Finding, HeatMap, RunLogError, SettingError, Story, Trial
from evengrad.report import page, write

VOID = {"meta", "img", "br", "hr", "input", "link", "polyline", "line", "circle"}


class Reader(HTMLParser):
    """Gather what a browser would see."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.words, self.scripts, self.headings = [], [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"h1", "h2", "h3", "h4"}:
            self.headings.append(int(tag[1]))
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(name="nasty_page")
def _nasty_page(nasty):
    return Reader(page(nasty))


def test_no_element_or_attribute_grows_out_of_a_name(nasty_page, sample):
    tame = Reader(page(sample))
    known = {tag for tag, _ in tame.tags} | {"dl", "dt", "dd", "li"}
    assert {tag for tag, _ in nasty_page.tags} <= known
    attributes = {name for _, attrs in nasty_page.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")}
    assert attributes <= {name for _, attrs in tame.tags for name in attrs} | {"open"}
    assert [attrs.get("type") for attrs, _ in nasty_page.scripts] == ["application/json", "text/plain", None]


def test_every_tag_is_closed_in_order(nasty_page, sample):
    assert nasty_page.open == []
    assert Reader(page(sample)).open == []


def test_a_hostile_name_is_shown_as_the_text_it_is(nasty_page):
    for shown in (
        "<script>alert(1)</script>",
        "[bold]x[/bold]",
        "</script><!--",
        "{{ 7*7 }}{% raw %}",
        "ünïcödé-层-🔥",
    ):
        assert shown in nasty_page.text


def test_control_characters_and_surrogates_never_reach_the_page(nasty):
    source = page(nasty)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", source)
    assert "␛[31mred" in source
    source.encode("utf-8")


def test_a_name_of_ten_thousand_characters_is_shortened_and_says_so(nasty_page):
    longest = max(re.findall("x+", nasty_page.text), key=len)
    assert len(longest) <= 10_000  # the code is shown whole
    source = page(Story(title="x" * 10_000, headline="ok", facts=(("y" * 10_000, "1"),)))
    assert max(map(len, re.findall("x+|y+", source))) < 300
    assert "9720 left out" in source


def test_nothing_is_loaded_from_anywhere(sample, nasty):
    for story in (sample, nasty):
        source = page(story)
        reader = Reader(source)
        assert not {tag for tag, _ in reader.tags} & {"link", "iframe", "object", "embed", "base", "form", "audio"}
        for _, attrs in reader.tags:
            assert not {"srcset", "action", "background", "data", "poster", "ping", "srcdoc"} & set(attrs)
            assert (attrs.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attrs
            assert (attrs.get("href") or "#").startswith("#")
            assert "url(" not in (attrs.get("style") or "")
        style = re.search("<style>(.*?)</style>", source, re.S).group(1)
        assert "url(" not in style
        assert "@import" not in style


def test_the_policy_runs_only_the_two_scripts_that_are_inside(sample):
    source = page(sample)
    reader = Reader(source)
    policies = [attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; script-src 'sha256-")
    script_part = policies[0].split(";")[1]
    assert "unsafe" not in script_part
    own = re.search("<script>(.*?)</script>", source, re.S).group(1)
    plotly = gzip.decompress(base64.b64decode(reader.scripts[1][1])).decode()
    assert plotly == get_plotlyjs()
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (own, plotly)}
    assert set(re.findall("sha256-([^']+)", script_part)) == hashes


def test_the_figures_are_strict_json_that_cannot_leave_its_element(nasty, sample):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    for story in (nasty, sample):
        (_, text), *_ = Reader(page(story)).scripts
        assert not set("<>&\u2028\u2029") & set(text)
        figures = json.loads(text, parse_constant=refuse)
        assert {trace["type"] for figure in figures for trace in figure["data"]} == {"heatmap", "scatter"}


def test_plotly_gets_names_as_text_and_not_as_markup(nasty):
    figures = json.loads(Reader(page(nasty)).scripts[0][1])
    labels = []
    for figure in figures:
        labels += figure["layout"]["yaxis"].get("ticktext", [])
        for trace in figure["data"]:
            labels += [*trace.get("y", [])] if trace["type"] == "heatmap" else [trace["name"], trace["text"]]
    words = [label for label in labels if isinstance(label, str)]
    assert any("&lt;script&gt;" in word for word in words)
    assert not [word for word in words if "<" in word or ">" in word]
    assert any("<b>fat</b>" in html.unescape(word) for word in words)


def test_everything_of_a_story_is_on_the_page(sample):
    shown = Reader(page(sample)).text
    for finding in sample.findings:
        wanted = [finding.message, finding.cause, finding.source, finding.severity, f"evengrad explain {finding.code}"]
        wanted += [finding.where[0], finding.where[-1], *(item.name for item in finding.evidence)]
        wanted += [cure.label for cure in finding.cures] + [cure.change for cure in finding.cures]
        assert not [text for text in wanted if text not in shown]
    assert shown.count("symptom gone") == 2
    for trial in sample.trials:
        assert trial.label in shown
        assert trial.error in shown
    for text in (*sample.changes, *sample.notes, *sum(sample.facts, ()), sample.headline, sample.verdict.message):
        assert text in shown
    assert " ".join(sample.code.split()) in shown
    assert "241 of 400" in shown


def test_trial_rows_have_one_row_each(sample):
    rows = re.search("Every trial .*?</details>", page(sample), re.S).group(0).count("<tr>")
    assert rows == 1 + len(sample.trials)


def test_the_difference_is_averaged_over_pairs_and_not_over_means(sample):
    row = re.search(r'<th scope="row" class="t">mean</th>(.*?)</tr>', page(sample)).group(1)
    paired = ((0.968 - 0.501) + (0.957 - 0.498)) / 2
    assert f"+{paired:.4g}" in row
    assert f"+{(0.968 + 0.957 + 0.966) / 3 - (0.501 + 0.498) / 2:.4g}" not in row


def test_headings_go_down_one_level_at_a_time(sample):
    headings = Reader(page(sample)).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_each_figure_has_a_label_a_caption_and_its_numbers(sample):
    source = page(sample)
    figures = re.findall("<figure.*?</figure>", source, re.S)
    assert len(figures) == len(sample.heat_maps) + 1
    for figure in figures:
        assert re.match('<figure aria-label="[^"]+">', figure)
        assert "<figcaption>" in figure
        assert "<details><summary>The numbers behind this plot</summary>" in figure
        assert "<table>" in figure


def test_colours_reach_the_contrast_that_wcag_asks_for(sample):
    style = re.search("<style>(.*?)</style>", page(sample), re.S).group(1)
    for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        pairs = [(ink, paper) for ink in ("ink", "soft", "accent") for paper in ("bg", "paper", "fill")]
        pairs += [(tone, f"{tone}-bg") for tone in ("good", "fair", "warn", "bad")] + [
            ("bad", "paper"),
            ("good", "paper"),
        ]
        assert all(_contrast(colour[a], colour[b]) >= 4.5 for a, b in pairs)
        assert all(_contrast(colour[line], colour["paper"]) >= 3 for line in ("before", "after", "break"))


def _contrast(one, other):
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_page_without_plots_is_small_and_runs_one_script():
    source = page(Story(title="", headline=""))
    assert len(source) < 40_000
    assert source.count("<script") == 1
    assert "No rule has anything to say" in source


@pytest.mark.parametrize("outcome", ["cured", "improved", "not cured", "was not sick", "cannot be cured by a tool"])
def test_every_outcome_has_its_badge(sample, outcome):
    story = replace(sample, heat_maps=(), curves=(), verdict=replace(sample.verdict, outcome=outcome))
    badges = re.findall(r'<span class="badge (\w+)">([^<]+)</span>', page(story))
    assert badges[0][1] == outcome
    assert (badges[0][0] == "good") == (outcome in {"cured", "was not sick"})


def test_more_than_the_page_holds_is_counted():
    finding = Finding(code="EG101", symptom="fault", severity="warning", where=())
    trial = Trial(label="untreated", seed=0, steps=1, stage="scout")
    source = page(Story(title="t", headline="h", findings=(finding,) * 205, trials=(trial,) * 1003))
    assert source.count('<article class="card') == 200
    assert "5 more findings are not shown here" in source
    assert "3 more trials are not shown here" in source


def test_not_finite_evidence_and_sizes_are_words():
    cure = Cure(treatment="T", tried=True, before_decades=float("inf"), after_decades=float("nan"))
    finding = Finding(
        code="EG1",
        symptom="s",
        severity="critical",
        where=(),
        cures=(cure,),
        evidence=(Evidence(name="e", value=float("nan")),),
    )
    source = page(Story(title="t", headline="h", findings=(finding,)))
    assert "<dt>e</dt><dd>NaN</dd>" in source
    assert 'aria-label="not finite before, NaN after"' in source
    assert "width:nan" not in source


def test_a_map_of_one_step_becomes_bars():
    heat_map = HeatMap(title="one batch", rows=("a", "b", "c"), steps=(0,), values=((1e-6,), (0.0,), (float("nan"),)))
    source = page(Story(title="t", headline="h", heat_maps=(heat_map,)))
    bars = re.findall(r'<code>(\w)</code><div class="track">.*?<span class="value (\w+)">([^<]+)<', source)
    assert bars == [("a", "some", "1e-06"), ("b", "zero", "0"), ("c", "none", "NaN")]
    assert 'id="plotly-packed"' not in source


def test_a_ragged_map_is_refused_with_its_sizes():
    heat_map = HeatMap(title="m", rows=("a", "b"), steps=(0, 1), values=((1.0, 2.0), (1.0,)))
    with pytest.raises(SettingError, match="got 2 rows of 1, 2 values, want 2 rows of 2 values"):
        page(Story(title="t", headline="h", heat_maps=(heat_map,)))


def test_the_page_is_the_same_every_time(sample):
    assert page(sample) == page(sample)


def test_write_replaces_the_file_and_leaves_no_draft(tmp_path, sample):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write(sample, target) == target
    assert target.read_text(encoding="utf-8") == page(sample)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_failing_write_keeps_the_old_file_and_leaves_no_draft(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(self, other):
        raise PermissionError("no")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(RunLogError, match="PermissionError"):
        write(Story(title="t", headline="h"), str(target))
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_write_refuses_a_missing_folder_and_a_folder(tmp_path):
    story = Story(title="t", headline="h")
    with pytest.raises(RunLogError, match="a folder that does not exist"):
        write(story, tmp_path / "nowhere" / "report.html")
    with pytest.raises(RunLogError, match="got a folder"):
        write(story, tmp_path)


def test_the_report_never_loads_torch():
    code = (
        "import sys; from evengrad.report import page, text; from evengrad.nouns import Curve, Story; "
        "curve = Curve(label='l', group='before', steps=(0, 1), values=(1.0, 2.0)); "
        "story = Story(title='t', headline='h', curves=(curve,)); "
        "page(story), text(story); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
