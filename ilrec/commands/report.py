"""The report of a set of runs: a table, a picture and a page in HTML that holds both, with the
protocol and the settings.

    ilrec report runs/sft runs/stage1 runs/stage2 --output report.png
    ilrec report sft=runs/a runs/stage1 --rank popularity=runs/sasrec/popularity.json

A run's own ranking (final/ranking.json, which ilrec/rank.py writes) is in the report, if it is
there. --rank names others: of merged models, of baselines. The page lies beside the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_file
from ilrec.ranking.results import format_table
from ilrec.reporting.contents import (
    OWN_RANKING,
    Ranking,
    choose_baseline,
    differing_protocol,
    ranking_of,
    run_of,
)
from ilrec.reporting.page import write_page
from ilrec.reporting.picture import check_picture, draw_report, png, write_picture

COLUMNS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="[NAME=]RUN",
        help="output directories of ilrec/train.py; without NAME, the directory's own",
    )
    parser.add_argument(
        "--rank",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="further rankings (ranking.json), the first rows of the table; one with the name of "
        "a run replaces the run's own",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="the ranking that is a line in the picture (default: that of the first run with plain "
        "cross-entropy, else the first)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report.png"),
        help="picture to write, in place of an older one: .png, .pdf, .svg, ...; the page has the "
        "same name and .html (default: report.png)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.runs and not arguments.rank:
        raise InputError("nothing to report; name runs, or rankings with --rank NAME=FILE")
    return arguments


def named_paths(words: Sequence[str], option: str) -> dict[str, Path]:
    """{name: path} of NAME=PATH words, in their order. A run may be given without a name."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            if option == "--rank":
                raise InputError(f"--rank: expected NAME=FILE, got {word!r}")
            name, path = Path(word).resolve().name, word
        if not name or name in found:
            raise InputError(f"{option}: {word}: expected NAME=PATH with a name of its own")
        found[name] = Path(path)
    return found


def collect_rankings(named: dict[str, Path], runs: dict[str, Path]) -> list[Ranking]:
    """The named rankings, and then those that runs have themselves."""
    own = {name: path / OWN_RANKING for name, path in runs.items() if name not in named}
    there = {name: path for name, path in own.items() if path.exists()}
    return [ranking_of(name, path) for name, path in (named | there).items()]


def main(argv: list[str]) -> None:
    # The output is checked before the input, as in every program here.
    arguments = parse_arguments(argv)
    page = arguments.output.with_suffix(".html")
    check_picture(arguments.output)
    check_file(page)
    places = named_paths(arguments.runs, "RUN")
    rankings = collect_rankings(named_paths(arguments.rank, "--rank"), places)
    runs = [run_of(name, path) for name, path in places.items()]
    baseline = choose_baseline(rankings, runs, arguments.baseline)

    # The table is printed even if the files cannot be written.
    try:
        figure = draw_report(rankings, runs, baseline)
        write_picture(figure, arguments.output)
        write_page(page, png(figure), rankings, runs, COLUMNS, baseline)
    finally:
        if rankings:
            table = {ranking.name: ranking.metrics for ranking in rankings}
            print(format_table(table, COLUMNS), flush=True)
    differing = differing_protocol(rankings)
    if differing:
        print(f"do not compare these numbers: they differ in {', '.join(differing)}", flush=True)
    print(f"picture: {arguments.output}\npage: {page}", flush=True)
