"""Is one model better than another, or do they differ by chance? Paired comparisons of rankings.

    ilrec compare runs/sft/final/ranking.json runs/stage2/final/ranking.json

The first file is the baseline, or the one that --baseline names. Printed for every other file: the
difference to the baseline, its 95 % interval from 10,000 bootstrap resamples of the users, and the
two-sided p value, also adjusted (Holm) for all comparisons of the table. Rankings are refused if
their split, users, candidates, catalogue or targets are not the same. --output also writes the
table (.md) or a picture (.png, .svg, ...).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.markdown import markdown_table, text_table
from ilrec.files.outputs import check_file, whole_file, write_text
from ilrec.ranking.comparison import NUM_RESAMPLES, Difference, holm, paired_difference
from ilrec.ranking.metrics import NAMES, values_per_case
from ilrec.ranking.results import Ranking, read_ranking, require_comparable, title_of
from ilrec.reporting.picture import check_picture

# What is compared if all rankings have it. It is not in lists of fewer than 10 items.
USUAL = ("ndcg@10", "hit@10")
HEADER = (
    "model",
    "metric",
    "value",
    "baseline",
    "difference",
    "95 % interval",
    "relative",
    "p",
    "p (Holm)",
)
# A filled point of the picture: p (Holm) below this.
LEVEL = 0.05


class Row(NamedTuple):
    """One model against the baseline in one metric: their means over cases, and the difference."""

    name: str
    metric: str
    value: float
    baseline: float
    found: Difference
    p_holm: float


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "rankings", nargs="+", metavar="RANKING", help="a ranking.json; ranking.npz lies beside it"
    )
    parser.add_argument(
        "--baseline",
        metavar="RANKING",
        help="the file that all others are compared with (default: the first)",
    )
    parser.add_argument(
        "--metrics",
        metavar="METRIC[,METRIC]",
        help=f"{', '.join(NAMES)} at a K, such as {','.join(USUAL)}, which are the default; if a "
        "list is shorter, ndcg and hit at the largest common K",
    )
    parser.add_argument(
        "--output",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="also write the table (.md) or a picture (.png, .pdf, .svg, ...)",
    )
    return parser.parse_args(argv)


def read_rankings(paths: Sequence[str], baseline: str | None) -> dict[str, Ranking]:
    """{name: ranking}, the baseline first. Raises InputError for fewer than two different files, or
    if they cannot be compared."""
    unique = list(dict.fromkeys(paths))
    first = baseline or unique[0]
    if first not in unique:
        raise InputError(f"--baseline: expected one of the files given, got {first}")
    if len(unique) < 2:
        raise InputError(f"expected two or more different rankings, got {first} alone")
    ordered = [first, *(path for path in unique if path != first)]
    rankings = dict(zip(short_names(ordered), map(read_ranking, ordered), strict=True))
    require_comparable(list(rankings.values()))
    return rankings


def short_names(paths: Sequence[str]) -> list[str]:
    """runs/sft/final/ranking.json -> sft/final; runs/sasrec/valid.json -> sasrec/valid: the folder
    or the file without its suffix, and without the folders that all have in common."""
    places = []
    for path in paths:
        whole = Path(path).absolute()
        places.append(whole.parent if whole.name == "ranking.json" else whole.with_suffix(""))
    common = os.path.commonpath([place.parent for place in places])
    return [str(place.relative_to(common)) for place in places]


def choose_metrics(wanted: str | None, rankings: Sequence[Ranking]) -> list[str]:
    """Raises InputError for a metric that a ranking does not have, or that is not of single
    cases."""
    shared = []
    for metric in rankings[0].measured.metrics:
        has_cases = metric.partition("@")[0] in NAMES
        if has_cases and all(metric in ranking.measured.metrics for ranking in rankings):
            shared.append(metric)
    if wanted is None:
        usual = [metric for metric in USUAL if metric in shared]
        largest = max(int(metric.partition("@")[2]) for metric in shared)
        return usual or [f"ndcg@{largest}", f"hit@{largest}"]
    chosen = wanted.split(",")
    for metric in chosen:
        if metric not in shared:
            raise InputError(
                f"--metrics: {metric!r} is not measured for single cases in all of the rankings; "
                f"expected some of {', '.join(shared)}"
            )
    return chosen


def compare(rankings: dict[str, Ranking], metrics: Sequence[str]) -> list[Row]:
    """Every ranking but the baseline, which comes first, in each of the metrics."""
    baseline, *others = rankings.values()
    rows = []
    for metric in metrics:
        baseline_C = values_per_case(baseline.target_ranks, metric)
        for name, ranking in zip(list(rankings)[1:], others, strict=True):
            values_C = values_per_case(ranking.target_ranks, metric)
            found = paired_difference(values_C, baseline_C, baseline.target_ranks.users)
            means = float(values_C.mean()), float(baseline_C.mean())
            rows.append(Row(name, metric, *means, found, found.p))
    adjusted = holm([row.found.p for row in rows])
    return [row._replace(p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def cells(row: Row) -> list[str]:
    """A line of the table."""
    found = row.found
    return [
        row.name,
        title_of(row.metric),
        f"{row.value:.4f}",
        f"{row.baseline:.4f}",
        f"{found.difference:+.4f}",
        f"{found.low:+.4f} to {found.high:+.4f}",
        f"{found.relative:+.1%}",
        f"{found.p:.4f}",
        f"{row.p_holm:.4f}",
    ]


def caption(rankings: dict[str, Ranking], num_comparisons: int) -> str:
    """What the table's numbers are of."""
    baseline, *_ = rankings
    ranking = rankings[baseline]
    ranks = ranking.target_ranks
    return (
        f"Differences to {baseline}: {ranking.protocol['split']} split, "
        f"{len(np.unique(ranks.users)):,} users, {len(ranks.users):,} cases. Paired bootstrap over "
        f"users, {NUM_RESAMPLES:,} resamples; Holm over {num_comparisons} comparisons."
    )


def draw(rows: Sequence[Row], baseline: str, path: Path) -> None:
    """Differences with their intervals, one panel for each metric. Writes the picture."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    size = (2 + 4 * len(metrics), 1.6 + 0.4 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for metric, panel in zip(metrics, panels, strict=True):
        draw_panel(panel, [row for row in rows if row.metric == metric])
    panels[0].set_yticks(range(len(names)), names)
    figure.suptitle(f"difference to {baseline}, 95 % interval; filled: p (Holm) < {LEVEL}")
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_panel(panel: Axes, rows: Sequence[Row]) -> None:
    """rows: of one metric. The first is on top."""
    for place, row in enumerate(rows):
        # An open point may differ by chance.
        face = "tab:blue" if row.p_holm < LEVEL else "white"
        interval = [row.found.low, row.found.high]
        panel.plot(interval, [place, place], "|-", color="tab:blue")
        panel.plot(row.found.difference, place, "o", color="tab:blue", markerfacecolor=face)
    panel.axvline(0, color="black", linewidth=1)
    panel.set_title(f"{title_of(rows[0].metric)} (baseline {rows[0].baseline:.4f})")
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(alpha=0.3)


def check_output(path: Path) -> None:
    """Raises InputError if the file cannot be written."""
    if path.suffix == ".md":
        check_file(path)
    else:
        check_picture(path)


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    for path in arguments.output:
        check_output(path)
    rankings = read_rankings(arguments.rankings, arguments.baseline)
    metrics = choose_metrics(arguments.metrics, list(rankings.values()))
    rows = compare(rankings, metrics)
    text = caption(rankings, len(rows))
    table = [cells(row) for row in rows]
    print(f"{text_table(HEADER, table)}\n\n{text}", flush=True)
    for path in arguments.output:
        if path.suffix == ".md":
            write_text(path, f"{markdown_table(HEADER, table)}\n\n{text}\n")
        else:
            draw(rows, next(iter(rankings)), path)
