"""The table and the picture of a set of runs: metrics of each model, loss terms and hard negatives
over the steps.

    ilrec report --rank NAME=ranking.json ... --run NAME=RUN_DIR ... --output report.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.ranking.results import format_table
from ilrec.training.metrics_log import read_steps
from ilrec.training.run_picture import check_picture, draw_runs

COLUMNS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--rank",
        nargs="+",
        required=True,
        metavar="NAME=FILE",
        help="the ranking.json of each row of the table",
    )
    parser.add_argument(
        "--run",
        nargs="*",
        default=[],
        metavar="NAME=DIR",
        help="output directories of ilrec/train.py, in training order",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="picture to write, in place of an older one: .png, .pdf, .svg, ...",
    )
    return parser.parse_args(argv)


def named_paths(pairs: list[str]) -> dict[str, Path]:
    """NAME=PATH words, in their order."""
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            raise InputError(f"expected NAME=PATH, got {pair!r}")
        found[name] = Path(path)
    return found


def main(argv: list[str]) -> None:
    # The output is checked before the input, as in every program here.
    arguments = parse_arguments(argv)
    check_picture(arguments.output)
    metrics = {}
    for name, path in named_paths(arguments.rank).items():
        metrics[name] = read_json(path)["metrics"]
    runs = {name: read_steps(path) for name, path in named_paths(arguments.run).items()}
    # The table is printed even if the picture cannot be written.
    try:
        draw_runs(metrics, runs, arguments.output)
    finally:
        print(format_table(metrics, COLUMNS), flush=True)
    print(f"picture: {arguments.output}", flush=True)
