"""An experiment: a grid of methods (YAML), each trained and ranked in its own directory, and one table of them all.

    python tools/run_experiment.py docs/experiments/instruments.yaml --data DIR --split valid            # to choose settings
    python tools/run_experiment.py docs/experiments/instruments.yaml --data DIR --report docs/experiments
    python tools/run_experiment.py GRID.yaml --list                                                      # what is done

Every (row, seed) has OUTPUT/ROW/seed-N/ with a log of each step and a marker that holds the step's exact command, settings and
the digests of all that it depends on. A step whose marker still fits is not run again; training that was interrupted goes on from its
newest checkpoint. The table (Markdown) and picture (PNG) are written anew at the end of every call, from all that is done.
docs/experiments/README.md says what a grid may hold and how to read the table.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark_report import device_name
from experiment_grid import Grid, Row, read_grid
from experiment_table import Result, metrics_table, write_report

from ilrec.command_line import ArgumentParser
from ilrec.config import DataConfig, read_json, write_text
from ilrec.data.dataset import fingerprint_of
from ilrec.data.interactions import read_interactions
from ilrec.entry import environment, run_entry
from ilrec.errors import InputError
from ilrec.outputs import check_directory
from ilrec.plain_yaml import to_yaml

SECONDS_TO_END = 30  # between asking a command to end and ending it
Execute = Callable[[list[str], Path], int]


@dataclass(frozen=True)
class Step:
    """One command. `product` is what it writes: a file, or a directory of weights; `clears`: removed where another start is needed."""

    row: str
    seed: int
    name: str
    directory: Path
    command: list[str]
    product: Path
    sources: tuple[Step, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    settings: dict[str, Any] | None = None
    clears: Path | None = None

    @property
    def title(self) -> str:
        return f"{self.row} seed {self.seed}: {self.name}"

    @property
    def marker(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"


class Plan:
    """The steps of a grid, each after those that it starts from."""

    def __init__(self, grid: Grid, output: Path) -> None:
        self.grid, self.output = grid, output
        self.k_core = DataConfig(**{name: grid.shared[name] for name in ("k_core",) if name in grid.shared}).k_core
        self.data_digest = read_interactions(grid.data, self.k_core).fingerprint
        self.trained: dict[tuple[str, int], Step] = {}
        self.ranked: dict[tuple[str, int], Step] = {}
        for row in grid.rows.values():
            for seed in row.seeds:
                if not row.is_deterministic:
                    self.trained[row.name, seed] = self.train_sasrec(row, seed) if row.baseline else self.train(row, seed)
                self.ranked[row.name, seed] = self.rank(row, seed)

    @property
    def steps(self) -> list[Step]:
        """Each run is ranked as soon as it is trained."""
        return [steps[key] for key in self.ranked for steps in (self.trained, self.ranked) if key in steps]

    def directory(self, row: Row, seed: int) -> Path:
        return self.output / row.name / f"seed-{seed}"

    def data_words(self) -> list[str]:
        return ["--data", self.grid.data, "--k_core", str(self.k_core)]

    def train_sasrec(self, row: Row, seed: int) -> Step:
        directory = self.directory(row, seed)
        command = ["python", "tools/train_sasrec.py", *self.data_words(), "--config", str(directory / "settings.yaml"),
                   "--output", str(directory / "model")]
        return Step(row.name, seed, "train", directory, command, directory / "model", (), (("data", self.data_digest),),
                    {**row.fields, "seed": seed}, directory / "model")

    def train(self, row: Row, seed: int) -> Step:
        directory = self.directory(row, seed)
        settings = self.grid.settings(row) | {"data": self.grid.data, "output_dir": str(directory / "model"), "seed": seed}
        sources = {name: self.trained[source, self.grid.source_seed(source, seed)]
                   for name, source in (("model", row.model), ("sasrec", row.sasrec)) if source}
        settings |= {name: str(step.product) for name, step in sources.items()}
        files = [("data", self.data_digest), ("semantic_ids", self.semantic_ids_digest(settings))]
        ds_config = []
        if self.grid.ds_config:
            ds_config = ["--ds_config", self.grid.ds_config]
            files.append((self.grid.ds_config, fingerprint_of([ROOT / self.grid.ds_config])))
        command = [*self.grid.launcher, *shlex.split(row.script), *ds_config, "--config", str(directory / "settings.yaml")]
        return Step(row.name, seed, "train", directory, command, directory / "model" / "final", tuple(sources.values()),
                    tuple(files), settings, directory / "model")

    def rank(self, row: Row, seed: int) -> Step:
        directory, split = self.directory(row, seed), self.grid.split
        product = directory / f"{split}.json"
        trained = self.trained.get((row.name, seed))
        if row.recipe and trained:
            command = [*self.grid.launcher, "ilrec/rank.py", "--model", str(trained.product), "--data", self.grid.data,
                       "--num_beams", str(self.grid.num_beams)]
        else:
            fields = {"sasrec": trained.product} if trained else row.fields
            command = ["python", "tools/rank_baselines.py", "--method", row.baseline, *self.data_words(),
                       *(word for name, value in fields.items() for word in (f"--{name}", str(value)))]
        return Step(row.name, seed, f"rank-{split}", directory, [*command, "--split", split, "--output", str(product)], product,
                    (trained,) if trained else (), (("data", self.data_digest),))

    def semantic_ids_digest(self, settings: dict[str, Any]) -> str:
        """Of the index file that is named, or of those that lie in the data directory."""
        named = settings.get("semantic_ids")
        paths = [ROOT / named] if named else sorted(Path(self.grid.data).glob("*.index.json"))
        if named and not paths[0].is_file():
            raise InputError(f"{self.grid.path}: semantic_ids: no such file: {paths[0]}")
        return fingerprint_of(paths)


def product_digest(step: Step) -> str:
    """Of the file, or of the directory's weights. InputError where the command has not written it."""
    paths = sorted(step.product.glob("*.safetensors")) if step.product.is_dir() else [step.product]
    if not paths or not all(path.is_file() for path in paths):
        raise InputError(f"{step.title} ended without an error but left no result in {step.product}\n  its output: {step.log}")
    return fingerprint_of(paths, [path.name for path in paths])


def run_command(command: list[str], log: Path) -> int:
    """The exit status; output and errors go to `log`. Where we are interrupted, the command and all that it started end first."""
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
               "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, *command[1:]] if command[0] == "python" else command
    with open(log, "ab") as output:
        output.write(f"\n$ {shlex.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(words, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
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

    def __init__(self, plan: Plan, execute: Execute = run_command) -> None:
        self.plan, self.execute = plan, execute
        self.started = time.monotonic()
        self.where = {"commit": environment([])["commit"], "machine": machine()}

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.0f} s] {text}", flush=True)

    def read_marker(self, step: Step) -> dict[str, Any]:
        return read_json(step.marker) if step.marker.exists() else {}

    def wanted(self, step: Step) -> dict[str, Any]:
        """What the marker of a finished step holds, if it finished as it would be run now."""
        inputs = dict(step.files) | {source.title: self.read_marker(source).get("product") for source in step.sources}
        return json.loads(json.dumps({"command": step.command, "settings": step.settings, "inputs": inputs}))

    def state(self, step: Step) -> str:
        if any(self.state(source) != "done" for source in step.sources):
            return "waiting"
        marker = self.read_marker(step)
        if not marker:
            return "to do"
        if any(marker.get(name) != value for name, value in self.wanted(step).items()):
            return "changed"
        return "done" if marker["product"] and step.product.exists() else "interrupted"

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
        marker = {**wanted, **self.where, "product": None, "seconds": before["seconds"] if goes_on else 0.0}
        write_text(step.marker, json.dumps(marker, indent=2) + "\n")
        begun = time.monotonic()
        try:
            status = self.execute(step.command, step.log)
            if status:
                raise InputError(f"{step.title} failed with exit status {status}: {last_line(step.log)}\n  its output: {step.log}\n"
                                 "  after mending, give the same command again: what is done is not repeated")
            marker["product"] = product_digest(step)
        finally:
            marker["seconds"] += time.monotonic() - begun
            marker["finished"] = time.strftime("%Y-%m-%d")
            write_text(step.marker, json.dumps(marker, indent=2) + "\n")

    def run(self, steps: list[Step], keep_going: bool) -> list[str]:
        """Run the steps that are not done, in order. Returns what went wrong; without keep_going that ends it."""
        todo = [step for step in steps if self.state(step) != "done"]
        self.say(f"{len(steps) - len(todo)} of {len(steps)} steps are done; output: {self.plan.output}")
        failures = []
        for number, step in enumerate(todo):
            left_out = [source.title for source in step.sources if self.state(source) != "done"]
            if left_out:
                self.say(f"{step.title}: left out, it needs {', '.join(left_out)}")
                continue
            left = self.estimate(todo[number:])
            self.say(f"{len(steps) - len(todo) + number + 1} of {len(steps)}, {step.title}"
                     + (f"; about {left / 60:.0f} min for all that is left" if left >= 60 else ""))
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
        """Seconds for `left`: each as long as the row's other seeds took, else as the other rows did; 0 where one cannot be told."""
        known: dict[str, dict[str, list[float]]] = {}
        for step in self.plan.steps:
            marker = self.read_marker(step)
            if marker.get("product"):
                known.setdefault(step.name, {}).setdefault(step.row, []).append(marker["seconds"])
        if any(step.name not in known for step in left):
            return 0.0
        return sum(statistics.mean(known[step.name].get(step.row) or sum(known[step.name].values(), [])) for step in left)

    def seconds_in_all(self, step: Step) -> float:
        """Of a step's command and of all that it starts from."""
        return self.read_marker(step)["seconds"] + sum(map(self.seconds_in_all, step.sources))

    def results(self) -> dict[str, list[Result]]:
        """What is done, by row, in the file's order."""
        found: dict[str, list[Result]] = {}
        for row, seed in sorted(self.plan.ranked, key=lambda key: self.plan.grid.listed.index(key[0])):
            ranked, trained = self.plan.ranked[row, seed], self.plan.trained.get((row, seed))
            if self.state(ranked) == "done":
                markers = [self.read_marker(step) for step in (trained, ranked) if step]
                found.setdefault(row, []).append(Result(
                    seed=seed, ranking=ranked.product, run=trained.clears if trained else None,
                    train_seconds=self.read_marker(trained)["seconds"] if trained else 0.0,
                    seconds_in_all=self.seconds_in_all(trained) if trained else 0.0,
                    wall_seconds=sum(marker["seconds"] for marker in markers),
                    commits={str(marker["commit"]) for marker in markers}, machines={marker["machine"] for marker in markers}))
        return found


def machine() -> str:
    name = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return f"{torch.cuda.device_count()} x {name}" if torch.cuda.is_available() else f"{name}, {os.cpu_count()} cores"


def last_line(log: Path) -> str:
    """What a failed command said last: mostly its reason."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def needed_for(steps: list[Step], rows: Iterable[str]) -> list[Step]:
    """The steps of these rows and all that they start from."""
    wanted: set[str] = set()
    for step in reversed(steps):  # a source comes before what starts from it
        if step.row in rows or step.title in wanted:
            wanted |= {step.title, *(source.title for source in step.sources)}
    return [step for step in steps if step.title in wanted]


def main(argv: list[str], execute: Execute = run_command) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument("--data", default="", help="data directory, in place of the grid's")
    parser.add_argument("--output", type=Path, help="directory of the runs (default: runs/NAME-OF-THE-GRID)")
    parser.add_argument("--split", default="", help="valid or test, in place of the grid's: both share what is trained")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows, and what they start from")
    parser.add_argument("--list", action="store_true", help="say what is done, run nothing")
    parser.add_argument("--keep_going", action="store_true", help="after a failure go on with what does not need it")
    parser.add_argument("--report", type=Path, help="directory for NAME.md and NAME.png (default: that of the runs)")
    arguments = parser.parse_args(argv)
    grid = read_grid(arguments.grid, str(Path(arguments.data).resolve()) if arguments.data else "", arguments.split)
    for name in arguments.only or []:
        if name not in grid.rows:
            raise InputError(f"--only: no row {name!r} in {grid.path}; it has {', '.join(grid.listed)}")
    output = (arguments.output or Path("runs") / grid.path.stem).resolve()
    report = arguments.report or output
    for directory in [] if arguments.list else [output, report]:
        check_directory(directory)
    experiment = Experiment(Plan(grid, output), execute)
    steps = needed_for(experiment.plan.steps, arguments.only or grid.listed)
    if arguments.list:
        for step in steps:
            print(f"{experiment.state(step):<12}{step.title}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit ends the running command first
    failures = experiment.run(steps, arguments.keep_going)
    results = experiment.results()
    if results:
        print(metrics_table(results), flush=True)
        written = write_report(grid, results, report, argv)
        experiment.say(f"table and picture: {written}")
    if failures:
        raise InputError("\n".join(failures))


if __name__ == "__main__":
    run_entry(main)
