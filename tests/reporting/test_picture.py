"""The picture: what is drawn where, and the kinds of file that it can be."""

from __future__ import annotations

import pytest
from made_reports import PLAIN, SFT, STAGE1
from matplotlib.figure import Figure

from ilrec.errors import InputError
from ilrec.reporting.contents import Ranking, Run
from ilrec.reporting.panels import Panel
from ilrec.reporting.picture import (
    COLORS,
    GREY,
    bar_metrics,
    check_picture,
    draw_bars,
    draw_panel,
    draw_report,
    moving_average,
    write_picture,
)

RUNS = [Run("sft", SFT, PLAIN), Run("stage1", STAGE1, PLAIN | {"beta": 0.1})]
RANKINGS = [
    Ranking("popularity", {"hit@10": 0.25, "ndcg@10": 0.125}, {}, {}),
    Ranking("sft", {"hit@10": 0.5, "ndcg@10": 0.25}, {}, {"hit@10": (0.375, 0.75)}),
]


def test_each_model_has_its_bar_with_its_interval_and_the_baseline_a_line():
    axes = Figure().subplots()
    draw_bars(axes, "hit@10", RANKINGS, {"sft": (COLORS[0], "o")}, "popularity")
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert bars == [(pytest.approx(0), 0.25), (pytest.approx(1), 0.5)]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] != colors[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["popularity", "sft"]
    (whisker,) = axes.containers[2].lines[2]
    assert whisker.get_segments()[0].tolist() == [[1, 0.375], [1, 0.75]]
    dashed = [line.get_ydata() for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert dashed == [[0.25, 0.25]]
    assert axes.get_ylim()[0] == 0


def test_a_panel_names_its_runs_and_is_linear():
    axes = Figure().subplots()
    panel = Panel("Title", "caption", {"a": ([1, 2], [0.5, 0.25])}, is_share=True)
    draw_panel(axes, panel, {"a": (COLORS[0], "o")})
    (line,) = axes.get_lines()
    assert (line.get_label(), line.get_xydata().tolist()) == ("a", [[1, 0.5], [2, 0.25]])
    assert axes.get_yscale() == "linear"
    assert axes.get_title(loc="left") == "Title"


def test_a_long_curve_is_averaged_over_the_points_behind_it():
    axes = Figure().subplots()
    values = [0.0, 1.0] * 100
    panel = Panel("Title", "caption", {"a": (list(range(200)), values)})
    draw_panel(axes, panel, {"a": (COLORS[0], "o")})
    points, average = axes.get_lines()
    assert points.get_ydata().tolist() == values
    assert max(average.get_ydata()) < 0.7


def test_moving_average():
    assert moving_average([1, 2, 6, 3], 2) == [1.5, 3, 11 / 3, 4.5]


def test_short_lists_are_compared_at_the_k_that_all_have():
    short = Ranking("short", {"hit@1": 0.1, "hit@5": 0.2, "ndcg@5": 0.1}, {}, {})
    long = Ranking("long", short.metrics | {"hit@10": 0.3}, {}, {})
    assert bar_metrics([short, long]) == ["hit@5", "ndcg@5"]
    assert bar_metrics(RANKINGS) == ["hit@10", "ndcg@10"]
    assert bar_metrics([Ranking("none", {}, {}, {})]) == []


@pytest.mark.parametrize("num_rankings", [0, 1, 2])
@pytest.mark.parametrize("num_runs", [0, 1, 2])
def test_any_number_of_runs_and_rankings(num_rankings, num_runs):
    rankings, runs = RANKINGS[:num_rankings], RUNS[:num_runs]
    if not rankings and not runs:
        with pytest.raises(InputError, match="nothing to draw"):
            draw_report(rankings, runs)
        return
    figure = draw_report(rankings, runs)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    expected = ["Hit@10", "NDCG@10"] if rankings else []
    expected += ["Cross-entropy"] if runs else []
    assert titles[: len(expected)] == expected


def test_a_run_has_one_colour_everywhere():
    figure = draw_report(RANKINGS, RUNS, "sft")
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    (curve,) = by_title["Cross-entropy"].get_lines()
    assert curve.get_color() == COLORS[0]
    other, bar = by_title["Hit@10"].patches
    figure_color = Figure().subplots().bar(0, 1, color=[COLORS[0]]).patches[0].get_facecolor()
    assert bar.get_facecolor() == figure_color
    grey = Figure().subplots().bar(0, 1, color=[GREY]).patches[0].get_facecolor()
    assert other.get_facecolor() == grey


def test_numbers_that_are_not_comparable_are_called_so():
    other = Ranking("other", RANKINGS[0].metrics, {"split": "valid"}, {})
    mine = Ranking("mine", RANKINGS[0].metrics, {"split": "test"}, {})
    (part,) = draw_report([mine, other], []).subfigs
    assert part.get_suptitle() == "Ranking: NOT comparable, because split differ"


@pytest.mark.parametrize("suffix", [".png", ".PDF", ".svg"])
def test_the_suffix_says_which_kind(suffix, tmp_path):
    path = tmp_path / f"report{suffix}"
    check_picture(path)
    write_picture(draw_report(RANKINGS, RUNS), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    starts = {".png": b"\x89PNG", ".PDF": b"%PDF", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix])


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a name that ends in one of .*pdf, .*png"):
        check_picture(tmp_path / "report.doc")
