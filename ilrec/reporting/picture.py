"""The picture of a report: how well each model ranks, and below it how its run went."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ilrec.errors import InputError
from ilrec.files.outputs import check_file, whole_file
from ilrec.ranking.results import title_of
from ilrec.reporting.contents import Ranking, Run, differing_protocol
from ilrec.reporting.panels import Panel, training_panels

# Okabe & Ito 2008 ("Color universal design"), without the yellow, which is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Of what was not trained by a run in this report.
GREY = "#9A9A9A"
# A curve of so many points has a marker at each of them.
FEW_POINTS = 25
# Above so many points, the curve is a moving average over this share of them, and the points
# themselves are drawn thinly behind it.
MANY_POINTS, AVERAGED_SHARE = 60, 0.05
COLUMNS = 3
# Names of more letters in all do not fit beside each other under the bars.
FLAT_LETTERS = 55
DPI = 130
# In inches.
WIDTH, BARS_HEIGHT, PANEL_HEIGHT, PADDING = 13.0, 3.9, 3.1, 0.1
HEADING: Any = {"x": 0.01, "ha": "left", "fontsize": 12, "fontweight": "bold"}


def check_picture(path: Path) -> None:
    """Raises InputError if the picture could not be written to `path`, whose suffix says of which
    kind it is."""
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(
            f"--output: {path}: expected a name that ends in one of {', '.join(kinds)}"
        )
    check_file(path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write it in place of an older one."""
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=DPI)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def draw_report(
    rankings: Sequence[Ranking], runs: Sequence[Run], baseline: str | None = None
) -> Figure:
    """The whole picture. baseline: the ranking that is drawn as a line, too.

    Raises InputError if there is nothing to draw.
    """
    styles = _styles(runs)
    panels = training_panels(runs)
    num_rows = math.ceil(len(panels) / COLUMNS)
    heights = [BARS_HEIGHT] * bool(rankings) + [num_rows * PANEL_HEIGHT + 0.5] * bool(panels)
    if not heights:
        raise InputError("nothing to draw: no ranking, and no run has logged a step yet")
    layout = ConstrainedLayoutEngine(w_pad=PADDING, h_pad=PADDING)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout=layout)
    ratios: Any = {"height_ratios": heights, "squeeze": False}
    parts = iter(figure.subfigures(len(heights), 1, **ratios).ravel())
    if rankings:
        draw_rankings(next(parts), rankings, styles, baseline)
    if panels:
        draw_training(next(parts), panels, styles, num_rows)
    return figure


def _styles(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """{run: (colour, marker)}, the same in all panels."""
    pairs = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    return {run.name: style for run, style in zip(runs, pairs, strict=False)}


def bar_metrics(rankings: Sequence[Ranking]) -> list[str]:
    """Hit@10 and NDCG@10; of rankings with shorter lists, the largest K that all of them have."""
    shared = set.intersection(*(set(ranking.metrics) for ranking in rankings))
    hits = [name.removeprefix("hit@") for name in shared if name.startswith("hit@")]
    cutoffs = [int(cutoff) for cutoff in hits if cutoff.isdecimal()]
    if not cutoffs:
        return []
    k = 10 if 10 in cutoffs else max(cutoffs)
    return [name for name in (f"hit@{k}", f"ndcg@{k}") if name in shared]


def draw_rankings(
    part: SubFigure,
    rankings: Sequence[Ranking],
    styles: Mapping[str, tuple[str, str]],
    baseline: str | None,
) -> None:
    """A panel of bars for each metric."""
    part.suptitle(_ranking_title(rankings), **HEADING)
    metrics = bar_metrics(rankings)
    grid = part.subplots(1, max(1, len(metrics)), squeeze=False).ravel()
    for metric, axes in zip(metrics, grid, strict=True):
        draw_bars(axes, metric, rankings, styles, baseline)


def _ranking_title(rankings: Sequence[Ranking]) -> str:
    protocol = rankings[0].protocol
    differing = differing_protocol(rankings)
    if differing:
        return f"Ranking: NOT comparable, because {', '.join(differing)} differ"
    title = "Ranking"
    if {"num_users", "num_items", "split"} <= protocol.keys():
        title = (
            f"Ranking all {protocol['num_items']:,} items for {protocol['num_users']:,} "
            f"{protocol['split']} users"
        )
    if any(ranking.intervals for ranking in rankings):
        title += "; whiskers: 95 % intervals over users"
    return title


def draw_bars(
    axes: Axes,
    metric: str,
    rankings: Sequence[Ranking],
    styles: Mapping[str, tuple[str, str]],
    baseline: str | None,
) -> None:
    """A bar for each ranking with its interval, and the baseline's height as a line across."""
    for place, ranking in enumerate(rankings):
        value = ranking.metrics[metric]
        color, _ = styles.get(ranking.name, (GREY, ""))
        axes.bar(place, value, 0.62, color=color)
        low, high = ranking.intervals.get(metric, (value, value))
        if high > low:
            error = [[value - low], [high - value]]
            axes.errorbar(place, value, error, color="#333333", capsize=4, linewidth=1.2)
        axes.annotate(
            f"{value:.3f}",
            (place, high),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
        if ranking.name == baseline:
            axes.axhline(value, color="#333333", linestyle="--", linewidth=1, zorder=0.5)
            axes.annotate(
                f"baseline\n{baseline}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="#333333",
            )
    axes.set_xticks(range(len(rankings)), [ranking.name for ranking in rankings])
    axes.tick_params(axis="x", length=0)
    if sum(len(ranking.name) for ranking in rankings) > FLAT_LETTERS:
        axes.tick_params(axis="x", rotation=25)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(rankings) - 0.4)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    _plain(axes, title_of(metric), "higher is better")


def draw_training(
    part: SubFigure,
    panels: Sequence[Panel],
    styles: Mapping[str, tuple[str, str]],
    num_rows: int,
) -> None:
    lengths = [len(steps) for panel in panels for steps, _ in panel.curves.values()]
    note = "; thick lines: moving averages" if max(lengths) > MANY_POINTS else ""
    part.suptitle("Training" + note, **HEADING)
    grid = part.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for panel, axes in zip(panels, grid, strict=False):
        draw_panel(axes, panel, styles)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()


def draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, tuple[str, str]]) -> None:
    """The curves of one quantity, each with its run's name."""
    for run, (steps, values) in panel.curves.items():
        color, marker = styles[run]
        few = marker if len(steps) <= FEW_POINTS else None
        if len(steps) > MANY_POINTS:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
            values = moving_average(values, int(AVERAGED_SHARE * len(values)))
        axes.plot(steps, values, color=color, marker=few, markersize=4, linewidth=1.8, label=run)
    axes.legend(fontsize=9, frameon=False)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if panel.is_share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(axes, panel.title, panel.caption)


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """The mean of up to `width` values around each; fewer at both ends."""
    half = max(1, width // 2)
    means = []
    for place in range(len(values)):
        around = values[max(0, place - half) : place + half + 1]
        means.append(sum(around) / len(around))
    return means


def _plain(axes: Axes, title: str, caption: str) -> None:
    """Title and caption at the left, faint lines across, no frame."""
    axes.set_title(title, loc="left", fontsize=11, pad=20)
    axes.text(0, 1.03, caption, transform=axes.transAxes, fontsize=8.5, color="#666666")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
