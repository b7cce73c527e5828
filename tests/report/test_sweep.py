"""A sweep in the report: the curve, the readings that explain it, and that nothing in it is markup."""

import json
import re

import pytest

from evengrad.nouns import Quantities, Story, Sweep, SweepPoint, SweepRange
from evengrad.report import page, text
from evengrad.report._sweep import badge_of_sweep, groups_of
from evengrad.report._sweep_figure import plots_of, still_of, sweep_figure

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m</script>[bold]"


def point(value, metric, *, policy="ByGlobalNorm", ending="finished", stage="sweep", seed=0, **changes):
    label = "none" if policy == "none" else f"{policy}({value})"
    read = Quantities(steps=40, clipped_frac=0.25, mean_scale=0.5, largest_norm=80.0, largest_let_through=2.0, spikes=3)
    return SweepPoint(
        label=changes.pop("label", label),
        policy=policy,
        value=value,
        ending=ending,
        metric=metric,
        stage=stage,
        seed=seed,
        quantities=read,
        **changes,
    )


def sweep(**changes):
    points = (
        point(None, 0.5, policy="none"),
        point(10.0, 0.6, ending="pruned"),
        point(0.1, 0.7),
        point(1.0, 0.9),
        point(100.0, None, ending="failed", error="the loss is nan at step 3"),
        *(point(1.0, metric, stage="confirmation", seed=at) for at, metric in ((1, 0.88), (2, 0.92))),
    )
    settings = {
        "ranges": (SweepRange(name="ByGlobalNorm", setting="max_norm", low=0.1, high=100.0, reason="of the norms"),),
        "points": points,
        "recommended": "ByGlobalNorm(1.0)",
        "message": "it is better",
        "steps": 40,
    }
    return Sweep(**(settings | changes))


def story(**changes):
    return Story(title="Tuning", headline="it is better", sweep=sweep(**changes))


def figures(html):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.S)[1])


def test_the_page_has_the_curve_in_the_order_of_the_threshold():
    (figure,) = figures(page(story()))
    line = next(trace for trace in figure["data"] if trace["mode"] == "lines" and "name" not in trace)
    assert (line["x"], line["y"]) == ([0.1, 1.0], [0.7, 0.9]), "only what went through is a line"
    dots = next(trace for trace in figure["data"] if trace.get("name") == "ByGlobalNorm")
    assert dots["x"] == [0.1, 1.0, 10.0, 100.0]
    assert dots["marker"]["symbol"] == ["circle", "circle", "circle-open", "x"]
    assert dots["y"][3] < 0.5, "what failed lies below all that has a metric"
    assert figure["layout"]["xaxis"]["type"] == "log"


def test_the_page_has_the_seeds_and_no_clipping():
    (figure,) = figures(page(story()))
    seeds = next(trace for trace in figure["data"] if "error_y" in trace)
    assert (seeds["x"], seeds["y"]) == ([1.0], [0.9])
    assert seeds["error_y"]["array"] == pytest.approx([0.02])
    none = next(trace for trace in figure["data"] if trace.get("name") == "no clipping")
    assert none["y"] == [0.5, 0.5]


def test_the_image_without_a_script_has_every_training():
    (plot,) = plots_of(sweep())
    still = still_of(plot)
    assert len(still.marks) == 4
    heights = {mark.ending: mark.y for mark in still.marks}
    assert heights["failed"] > heights["pruned"] > heights["finished"], "down is worse"
    assert sum(mark.recommended for mark in still.marks) == 1
    assert len(still.lines) == 1


def test_the_text_has_the_curve_and_the_readings():
    told = text(story(), width=150)
    rows = [line.split() for line in told.splitlines() if re.match(r"^(0\.1|1|10|100) ", line)]
    assert [row[0] for row in rows] == ["0.1", "1", "10", "100"]
    assert "0.88 to 0.92" in told
    assert "25 %" in told
    assert "failed: the loss is nan" in told
    assert "worth clipping" in told


@pytest.mark.parametrize("show", [page, text])
def test_names_and_errors_are_shown_as_text(show):
    bad = point(2.0, None, ending="failed", policy=HOSTILE, label=HOSTILE, error=HOSTILE, others=((HOSTILE, 1.0),))
    ranges = tuple(SweepRange(name=HOSTILE, setting=HOSTILE, low=1.0, high=2.0, reason=HOSTILE) for _ in range(2))
    shown = show(story(points=(*sweep().points, bad), ranges=(*ranges, *sweep().ranges), recommended=HOSTILE))
    assert "\x1b" not in shown
    if show is page:
        assert "<img" not in shown.replace('<img alt="" src="data:', "")
        assert not re.search(r"onerror=alert\(1\)>", shown)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recommended": "none"}, "no clipping needed"),
        ({}, "worth clipping"),
        ({"recommended": ""}, "nothing trains"),
        ({"recommended": "", "message": ""}, "not over"),
    ],
)
def test_the_badge_says_the_result(changes, words):
    assert badge_of_sweep(story(**changes))[0] == words


@pytest.mark.parametrize("points", [(), (point(None, None, policy="none", ending="failed"),)])
def test_a_sweep_with_hardly_anything_is_shown(points):
    shown = story(points=points, recommended="", message="")
    assert "not over" in text(shown)
    assert "not over" in page(shown)


def test_strange_numbers_make_no_invalid_figure():
    points = (point(0.0, 0.5), point(float("inf"), 0.4), point(-1.0, 0.3), point(1.0, float("nan")), point(2.0, 1e308))
    (plot,) = plots_of(sweep(points=points))
    json.dumps(sweep_figure(plot), allow_nan=False)
    assert len(groups_of(sweep(points=points))[0].rows) == 5
