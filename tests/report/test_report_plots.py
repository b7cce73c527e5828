"""What plots are made of: pooling keeps what matters, figures say what the numbers say."""

import math
import struct
import zlib

import numpy as np
import pytest

from evengrad.nouns import Curve, HeatMap, SettingError
from evengrad.report._colours import BAD, CIVIDIS, ZERO, png
from evengrad.report._figures import heat_map_figure, loss_figure
from evengrad.report._grid import grid_of, heat_map_of, pooled
from evengrad.report._labels import short_labels
from evengrad.report._lines import line_of, lines_of, logarithmic
from evengrad.report._static import chart_of, spark

NAN, INF = math.nan, math.inf


def big_map():
    norm_LT = np.full((700, 1300), 1e-6)
    norm_LT[401, 777] = 1e9
    norm_LT[10, 20] = NAN
    norm_LT[650, 1299] = INF
    rows = tuple(f"layer{number}" for number in range(700))
    return HeatMap(title="m", rows=rows, steps=tuple(range(1300)), values=tuple(map(tuple, norm_LT.tolist())))


def test_pooling_keeps_a_spike_a_nan_and_an_inf_and_stays_under_the_cap():
    grid = pooled(grid_of(big_map()))
    assert grid.norm_LT.shape == (234, 434)  # 700 and 1300 in blocks of three
    assert (grid.rows_each, grid.steps_each) == (3, 3)
    assert grid.norm_LT[401 // 3, 777 // 3] == 1e9
    assert math.isnan(grid.norm_LT[10 // 3, 20 // 3])
    assert math.isinf(grid.norm_LT[650 // 3, 1299 // 3])
    assert int(grid.bad_LT.sum()) == 2
    assert (grid.norm_LT == 1e-6).sum() == 234 * 434 - 3
    assert grid.rows[:2] == ("layer0 … layer2", "layer3 … layer5")
    assert grid.rows[-1] == "layer699"


def test_pooling_twice_changes_nothing():
    once = pooled(grid_of(big_map()))
    assert pooled(grid_of(heat_map_of(once))).rows == once.rows


def test_a_negative_norm_counts_as_not_finite_even_when_pooled():
    heat_map = HeatMap(title="m", rows=("a",), steps=(0, 1), values=((-1.0, 2.0),))
    assert grid_of(heat_map).bad_LT.tolist() == [[True, False]]
    assert pooled(grid_of(heat_map), most_steps=1).bad_LT.tolist() == [[True]]


def test_the_figure_holds_logarithms_and_separate_layers_for_zero_and_not_finite():
    heat_map = HeatMap(title="m", rows=("a", "b"), steps=(0, 5), values=((1e-4, 0.0), (NAN, 100.0)))
    sizes, zeros, bad = heat_map_figure(grid_of(heat_map), -4.0, 2.0)["data"]
    assert sizes["z"] == [[-4.0, None], [None, 2.0]]
    assert zeros["z"] == [[None, 1], [None, None]]
    assert bad["z"] == [[None, None], [1, None]]
    assert (zeros["colorscale"][0][1], bad["colorscale"][0][1]) == (ZERO, BAD)
    assert [colour for _, colour in sizes["colorscale"]] == list(CIVIDIS)


def test_layers_of_one_name_keep_their_own_rows():
    heat_map = HeatMap(title="m", rows=("a", "a", "a (2)"), steps=(0, 1), values=((1.0, 1.0),) * 3)
    rows = heat_map_figure(grid_of(heat_map), 0.0, 1.0)["data"][0]["y"]
    assert len(set(rows)) == 3


def test_the_image_has_one_pixel_per_cell_in_the_colour_of_its_kind():
    heat_map = HeatMap(title="m", rows=("a", "b"), steps=(0, 1, 2), values=((1e-4, 1e2, 0.0), (NAN, INF, 1e-4)))
    image = png(grid_of(heat_map), -4.0, 2.0)
    chunks, at = {}, 8
    while at < len(image):
        (size,) = struct.unpack(">I", image[at : at + 4])
        chunks[image[at + 4 : at + 8]] = image[at + 8 : at + 8 + size]
        assert (
            zlib.crc32(image[at + 4 : at + 8 + size]) == struct.unpack(">I", image[at + 8 + size : at + 12 + size])[0]
        )
        at += 12 + size
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (3, 2)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(2, 4)[:, 1:]
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    colours = [["#" + bytes(palette[cell]).hex() for cell in line] for line in lines]
    assert colours == [[CIVIDIS[0], CIVIDIS[-1], ZERO], [BAD, BAD, CIVIDIS[0]]]


def test_thinning_a_curve_keeps_its_spike_its_dip_and_its_breaks():
    values = [1.0] * 100_000
    values[54_321], values[12_345], values[77_777] = 1e9, 1e-9, NAN
    line = line_of(Curve(label="l", group="before", steps=tuple(range(100_000)), values=tuple(values)))
    assert len(line.steps) < 3000
    assert {54_321: 1e9, 12_345: 1e-9, 77_777: None}.items() <= dict(zip(line.steps, line.values, strict=True)).items()
    assert line.breaks == ((77_777, 1.0, "NaN"),)


def test_a_break_is_marked_once_where_it_begins():
    line = line_of(Curve(label="l", group="after", steps=(0, 1, 2, 3, 4), values=(INF, 2.0, NAN, NAN, -INF)))
    assert line.breaks == ((0, None, "Inf"), (2, 2.0, "NaN"))
    (_, marks) = loss_figure([line])["data"]
    assert (marks["x"], marks["y"]) == ([0, 2], [2.0, 2.0])


@pytest.mark.parametrize(
    ("values", "log"),
    [((1.0, 0.001), True), ((1.0, 0.02), False), ((1.0, 0.0, 1e-9), False), ((-1.0, 1e6), False), ((NAN, NAN), False)],
)
def test_the_axis_is_logarithmic_only_for_positive_values_over_two_decades(values, log):
    line = line_of(Curve(label="l", group="before", steps=tuple(range(len(values))), values=values))
    assert logarithmic([line]) is log
    assert loss_figure([line])["layout"]["yaxis"]["type"] == ("log" if log else "linear")


def test_without_a_cure_no_curve_is_called_before():
    curve = Curve(label="l", group="before", steps=(0,), values=(1.0,))
    assert [line.group for line in lines_of([curve])] == ["run"]
    after = Curve(label="l", group="after", steps=(0,), values=(1.0,))
    assert [line.group for line in lines_of([curve, after])] == ["before", "after"]


def test_a_curve_with_another_number_of_steps_is_refused():
    with pytest.raises(SettingError, match="got 1 values, want 2, one a step"):
        line_of(Curve(label="l", group="before", steps=(0, 1), values=(1.0,)))


def test_the_still_chart_breaks_its_line_where_the_loss_does():
    line = line_of(Curve(label="l", group="x", steps=(0, 1, 2, 3, 4), values=(1.0, 2.0, NAN, 1.0, 2.0)))
    chart = chart_of([line])
    assert [len(stroke.split()) for stroke in chart.paths[0].strokes] == [2, 2]
    assert len(chart.breaks) == 1
    assert chart_of([line_of(Curve(label="l", group="x", steps=(0,), values=(NAN,)))]).paths == ()


def test_a_spark_of_fewer_than_two_finite_values_is_nothing():
    assert spark(()) == spark((1.0,)) == spark((NAN, 1.0)) == ""
    assert spark((3.0, 3.0)) == "0,10 100,10"


def test_short_labels_stay_different_and_never_empty():
    names = ("a.b.weight", "a.weight", "a.b.c.weight")
    labels, said = short_labels(names)
    assert labels == ("b.weight", "weight", "b.c.weight")
    assert said == "every name begins with “a.”"
    assert short_labels(("x", "x.y")) == (("x", "x.y"), "")
    assert short_labels(("same.one", "same.one"))[0] == ("one", "one")


def test_layers_that_are_called_by_numbers_keep_their_labels():
    """Plotly reads a tick of 2 on an axis of names as the name "2", not as the third row."""
    names = tuple(str(number) for number in range(0, 26, 2))
    figure = heat_map_figure(
        grid_of(HeatMap(title="t", rows=names, steps=(0, 1), values=((1.0, 2.0),) * 13)), low=0.0, high=1.0
    )
    axis = figure["layout"]["yaxis"]
    assert axis["tickvals"] == list(names)
    assert axis["ticktext"] == list(names)
