"""An experiment: a grid of methods (YAML), each trained and ranked in its own directory, and one
table of them all.

    python tools/experiments/run_experiment.py docs/experiments/instruments.yaml --data DIR --split
    valid            # to choose settings python tools/experiments/run_experiment.py
    docs/experiments/instruments.yaml --data DIR --report docs/experiments python
    tools/experiments/run_experiment.py GRID.yaml --data DIR --budget 100m      # the next runs that
    fit into this time python tools/experiments/run_experiment.py GRID.yaml --data DIR --list
    # what is done python tools/experiments/run_experiment.py GRID.yaml --table
    # # the table again, from the results alone

What is kept of each (row, seed) lies beside the grid, in results/GRID/, small enough to be
committed; a result that is there is not made again, whatever machine made it. Logs and weights lie
in OUTPUT/ROW/seed-N/ with a marker of each step; training that was interrupted goes on from its
newest checkpoint. docs/experiments/README.md says what a grid may hold and how to read the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiment_grid import Grid, read_grid
from experiment_plan import Plan, Step, product_digest, with_sources
from experiment_results import Result, Results, training_record
from experiment_table import metrics_table, write_report

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory, write_text
from ilrec.files.plain_yaml import to_yaml
from ilrec.files.reading import read_json
from ilrec.processes import device_name, environment, run_entry

SECONDS_TO_END = 30  # between asking a command to end and ending it
Execute = Callable[[list[str], Path], int]


def run_command(command: list[str], log: Path) -> int:
    """The exit status; output and errors go to `log`. Where we are interrupted, the command and all
    that it started end first."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    words = [sys.executable, *command[1:]] if command[0] == "python" else command
    with open(log, "ab") as output:
        output.write(f"\n$ {shlex.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise


class Experiment:
    """Runs what is not done, and knows what is."""

    def __init__(self, plan: Plan, results: Results, execute: Execute = run_command) -> None:
        self.plan, self.kept, self.execute = plan, results, execute
        self.started = time.monotonic()
        self.where = {"commit": environment([])["commit"], "machine": machine()}

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.0f} s] {text}", flush=True)

    def read_marker(self, step: Step) -> dict[str, Any]:
        return read_json(step.marker) if step.marker.exists() else {}

    def wanted(self, step: Step) -> dict[str, Any]:
        """What the marker of a finished step holds, if it finished as it would be run now."""
        inputs = dict(step.files) | {
            source.title: self.read_marker(source).get("product") for source in step.sources
        }
        return json.loads(
            json.dumps({"command": step.command, "settings": step.settings, "inputs": inputs})
        )

    def is_kept(self, step: Step) -> bool:
        """Whether a ranking's result is there, made here or elsewhere."""
        if step.name == "train":
            return False
        row = self.plan.grid.rows[step.row]
        num_beams = self.plan.grid.num_beams if row.recipe else None
        return self.kept.has(
            step.row,
            step.seed,
            self.plan.grid.split,
            self.plan.contents[step.row, step.seed],
            num_beams,
        )

    def state(self, step: Step) -> str:
        """Of the step here: training that is not done may not be needed, where the result is
        kept."""
        if self.is_kept(step):
            return "done"
        if any(self.state(source) != "done" for source in step.sources):
            return "waiting"
        marker = self.read_marker(step)
        if not marker:
            return "to do"
        if any(marker.get(name) != value for name, value in self.wanted(step).items()):
            return "changed"
        finished = marker["product"] and step.product.exists() and step.name == "train"
        return "done" if finished else "interrupted"

    def keep(self, step: Step) -> None:
        """What lasts of a run that is ranked."""
        trained, training = self.plan.trained.get((step.row, step.seed)), None
        if trained and trained.clears:
            marker = self.read_marker(trained)
            where = {name: marker[name] for name in ("commit", "machine", "finished")}
            training = training_record(
                marker["seconds"], self.seconds_in_all(trained), trained.clears, where
            )
        marker = self.read_marker(step)
        ranking = {
            **read_json(step.product),
            **{name: marker[name] for name in ("seconds", "commit", "machine", "finished")},
        }
        self.kept.save(
            step.row,
            step.seed,
            self.plan.grid.split,
            self.plan.contents[step.row, step.seed],
            training,
            ranking,
            np.load(step.product.with_suffix(".npy")),
        )

    def needed(self, rows: Iterable[str]) -> list[Step]:
        """The steps of these rows' results that are not there, with the training that they need, in
        order."""
        missing = [
            step
            for step in self.plan.steps
            if step.name != "train" and step.row in rows and not self.is_kept(step)
        ]
        wanted = {earlier.title for step in missing for earlier in with_sources(step)}
        return [step for step in self.plan.steps if step.title in wanted]

    def run_step(self, step: Step) -> None:
        """Run it, or go on with it. InputError, naming the log, where it fails."""
        wanted, before = self.wanted(step), self.read_marker(step)
        goes_on = self.state(step) == "interrupted"
        if not goes_on:
            step.log.unlink(missing_ok=True)
            if step.clears:
                shutil.rmtree(step.clears, ignore_errors=True)
        if step.settings is not None:
            write_text(step.directory / "settings.yaml", to_yaml(step.settings))
        marker = {
            **wanted,
            **self.where,
            "product": None,
            "seconds": before["seconds"] if goes_on else 0.0,
        }
        write_text(step.marker, json.dumps(marker, indent=2) + "\n")
        begun = time.monotonic()
        try:
            status = self.execute(step.command, step.log)
            if status:
                raise InputError(
                    f"{step.title} failed with exit status {status}: {last_line(step.log)}\n  its output: {step.log}\n"
                    "  after mending, give the same command again: what is done is not repeated"
                )
            marker["product"] = product_digest(step)
        finally:
            marker["seconds"] += time.monotonic() - begun
            marker["finished"] = time.strftime("%Y-%m-%d")
            write_text(step.marker, json.dumps(marker, indent=2) + "\n")
        if step.name != "train":
            self.keep(step)

    def run(self, rows: Iterable[str], keep_going: bool, budget: float) -> list[str]:
        """Run what is not done, in order. Returns what went wrong; without keep_going that ends it.

        budget: seconds; nothing is started that would take longer, by what is known, than is left
            of them.
        """
        todo = [step for step in self.needed(rows) if self.state(step) != "done"]
        self.say(
            f"{len(todo)} steps to do; output: {self.plan.output}, results: {self.kept.directory}"
        )
        failures = []
        for number, step in enumerate(todo):
            if time.monotonic() - self.started + self.seconds_to_result(step) > budget:
                self.say(
                    f"{step.title}: does not fit into what is left of the time; the same command goes on from here"
                )
                break
            left_out = [source.title for source in step.sources if self.state(source) != "done"]
            if left_out:
                self.say(f"{step.title}: left out, it needs {', '.join(left_out)}")
                continue
            left = self.estimate(todo[number:])
            self.say(
                f"{number + 1} of {len(todo)}, {step.title}"
                + (f"; about {left / 60:.0f} min for all that is left" if left >= 60 else "")
            )
            try:
                step.directory.mkdir(parents=True, exist_ok=True)
                with FileLock(step.directory.with_suffix(".lock"), timeout=0):
                    self.run_step(step)
            except (InputError, Timeout) as error:
                busy = f"{step.title}: another process is at work in {step.directory}"
                failures.append(busy if isinstance(error, Timeout) else str(error))
                if not keep_going:
                    break
                self.say(f"{step.title}: failed")
        return failures

    def estimate(self, left: list[Step]) -> float:
        """Seconds for `left`; 0 where one cannot be told."""
        seconds = [self.seconds_of(step) for step in left]
        return sum(seconds) if all(seconds) else 0.0

    def seconds_to_result(self, step: Step) -> float:
        """Of a step and, where it trains, of the ranking that makes it a result."""
        follows = self.plan.ranked[step.row, step.seed] if step.name == "train" else None
        return self.seconds_of(step) + (self.seconds_of(follows) if follows else 0.0)

    def seconds_of(self, step: Step) -> float:
        """As long as the row's other seeds took, else as other rows of its kind did; 0 where none
        is known."""
        rows = self.plan.grid.rows
        of_row: list[float] = []
        of_kind: list[float] = []
        for row, seed in self.plan.ranked:
            content = self.kept.read(row, seed)
            part = (
                content.get("training")
                if step.name == "train"
                else content.get("rankings", {}).get(self.plan.grid.split)
            )
            if part and rows[row].baseline == rows[step.row].baseline:
                (of_row if row == step.row else of_kind).append(part["seconds"])
        known = of_row or of_kind
        return statistics.mean(known) if known else 0.0

    def seconds_in_all(self, step: Step) -> float:
        """Of a step's command and of all that it starts from."""
        return self.read_marker(step)["seconds"] + sum(map(self.seconds_in_all, step.sources))


def kept_results(grid: Grid, results: Results) -> dict[str, list[Result]]:
    """What is kept of the grid's rows, in the file's order."""
    found: dict[str, list[Result]] = {}
    for name in grid.listed:
        runs = [results.result(name, seed, grid.split) for seed in grid.rows[name].seeds]
        if any(runs):
            found[name] = [run for run in runs if run]
    return found


def machine() -> str:
    name = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return (
        f"{torch.cuda.device_count()} x {name}"
        if torch.cuda.is_available()
        else f"{name}, {os.cpu_count()} cores"
    )


def last_line(log: Path) -> str:
    """What a failed command said last: mostly its reason."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def seconds(text: str) -> float:
    """100m, 1.5h or 90s; argparse says which option it belongs to."""
    number, unit = text[:-1], text[-1:]
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected a time such as 100m, 1.5h or 90s, got {text!r}"
        ) from None


def main(argv: list[str], execute: Execute = run_command) -> None:
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
    parser.add_argument("--list", action="store_true", help="say what is done, run nothing")
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
    arguments = parser.parse_args(argv)
    data = "-" if arguments.table else str(Path(arguments.data).resolve()) if arguments.data else ""
    grid = read_grid(arguments.grid, data, arguments.split)
    for name in arguments.only or []:
        if name not in grid.rows:
            raise InputError(
                f"--only: no row {name!r} in {grid.path}; it has {', '.join(grid.listed)}"
            )
    output = (arguments.output or Path("runs") / grid.path.stem).resolve()
    results = Results(grid.path.parent / "results" / grid.path.stem)
    report = arguments.report or (grid.path.parent if arguments.table else output)
    for directory in [] if arguments.list else [output, results.directory, report]:
        check_directory(directory)
    failures = []
    if not arguments.table:
        experiment = Experiment(Plan(grid, output), results, execute)
        if arguments.list:
            for step in experiment.plan.steps:
                if step.row in (arguments.only or grid.listed):
                    print(f"{experiment.state(step):<12}{step.title}")
            return
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
        )  # an exit ends the running command first
        failures = experiment.run(
            arguments.only or grid.listed, arguments.keep_going, arguments.budget
        )
    found = kept_results(grid, results)
    if found:
        print(metrics_table(found), flush=True)
        print(f"table and picture: {write_report(grid, found, report, argv)}", flush=True)
    if failures:
        raise InputError("\n".join(failures))


if __name__ == "__main__":
    run_entry(main)
