"""An experiment: a grid of methods (YAML), each trained and ranked in its own directory, and one
table of them all.

    # Settings are chosen on the validation split; then the test split is reported.
    ilrec experiment docs/experiments/instruments.yaml --data DIR \\
        --split valid
    ilrec experiment docs/experiments/instruments.yaml --data DIR \\
        --report docs/experiments
    # The next runs that fit into this time.
    ilrec experiment GRID.yaml --data DIR --budget 100m
    # What is done.
    ilrec experiment GRID.yaml --data DIR --list
    # The table again, from the results alone.
    ilrec experiment GRID.yaml --table

What is kept of each (row, seed) lies beside the grid, in results/GRID/, small enough to be
committed. A result that is there is not made again, whatever machine made it. Logs and weights lie
in OUTPUT/ROW/seed-N/ with a marker of each step; training that was interrupted goes on from its
newest checkpoint. docs/experiments/README.md says what a grid may hold and how to read the table.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.config.settings import read_value
from ilrec.errors import InputError
from ilrec.experiments.grid import Grid
from ilrec.experiments.grid_file import read_grid
from ilrec.experiments.logged_commands import run_command
from ilrec.experiments.plan import Plan
from ilrec.experiments.results import Result, Results
from ilrec.experiments.runs import Execute, Experiment
from ilrec.experiments.table import metrics_table, write_report
from ilrec.files.outputs import check_directory

SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument("--data", default="", help="data directory, in place of the grid's")
    parser.add_argument(
        "--output", type=Path, help="directory of the runs (default: runs/NAME-OF-THE-GRID)"
    )
    parser.add_argument(
        "--split",
        default="",
        help="valid or test, in place of the grid's: both share what is trained",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="these rows, and what they start from"
    )
    parser.add_argument("--list", action="store_true", help="print what is done, run nothing")
    parser.add_argument(
        "--table",
        action="store_true",
        help="write the table from the results that are there, run nothing",
    )
    parser.add_argument(
        "--budget",
        type=seconds,
        default=math.inf,
        help="start only what fits into this time: 100m, 1.5h",
    )
    parser.add_argument(
        "--keep_going", action="store_true", help="after a failure go on with what does not need it"
    )
    parser.add_argument(
        "--report", type=Path, help="directory for NAME.md and NAME.png (default: that of the runs)"
    )
    return parser.parse_args(argv)


def seconds(text: str) -> float:
    """100m, 1.5h or 90s in seconds. argparse adds the option's name to the message."""
    try:
        number = read_value(text[:-1], float)
        unit = SECONDS_OF_UNIT[text[-1:]]
    except (KeyError, ValueError):
        number = unit = 0
    if number * unit <= 0:
        raise argparse.ArgumentTypeError(
            f"expected a time above 0 such as 100m, 1.5h or 90s, got {text!r}"
        )
    return number * unit


def kept_results(grid: Grid, results: Results) -> dict[str, list[Result]]:
    """What is kept of the grid's rows, in the file's order."""
    found: dict[str, list[Result]] = {}
    for name in grid.listed:
        runs = [results.result(name, seed, grid.split) for seed in grid.rows[name].seeds]
        kept = [run for run in runs if run]
        if kept:
            found[name] = kept
    return found


def read_checked_grid(arguments: argparse.Namespace) -> Grid:
    """The grid, in which all rows of --only exist."""
    data = str(Path(arguments.data).resolve()) if arguments.data else ""
    if arguments.table:
        data = "-"  # the table needs no data, but a grid has some
    grid = read_grid(arguments.grid, data, arguments.split)
    for name in arguments.only or []:
        if name not in grid.rows:
            raise InputError(
                f"--only: no row {name!r} in {grid.path}; it has {', '.join(grid.listed)}"
            )
    return grid


def print_states(experiment: Experiment, rows: list[str]) -> None:
    for step in experiment.plan.steps:
        if step.row in rows:
            print(f"{experiment.state(step):<12}{step.title}")


def main(argv: list[str], execute: Execute = run_command) -> None:
    arguments = parse_arguments(argv)
    grid = read_checked_grid(arguments)
    rows = arguments.only or grid.listed
    output = (arguments.output or Path("runs") / grid.path.stem).resolve()
    results = Results(grid.path.parent / "results" / grid.path.stem)
    if arguments.list:
        print_states(Experiment(Plan(grid, output), results, execute), rows)
        return

    # All places are tried before the first run: a report that cannot be written would be found
    # out after hours.
    report = arguments.report or (grid.path.parent if arguments.table else output)
    for directory in (output, results.directory, report):
        check_directory(directory)

    failures: list[str] = []
    if not arguments.table:
        experiment = Experiment(Plan(grid, output), results, execute)
        # An exit, unlike the signal itself, ends the running command first.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        failures = experiment.run(rows, arguments.keep_going, arguments.budget)

    # The table is written after a failure, too: it has what there is.
    found = kept_results(grid, results)
    if found:
        print(metrics_table(found), flush=True)
        print(f"table and picture: {write_report(grid, found, report, argv)}", flush=True)
    if failures:
        raise InputError("\n".join(failures))
