"""Runs what is not done of an experiment, in order, and keeps the results.

The result of a run is done if it is kept (experiment_results.py), whatever machine made it.
Training has no result of its own: it is needed only for a ranking that is not kept, and counts as
done while its weights lie here (ilrec/files/steps.py).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ilrec.errors import InputError
from ilrec.experiments.logged_commands import last_line, run_command
from ilrec.experiments.plan import Plan, Step, product_digest, with_sources
from ilrec.experiments.results import Results, training_record
from ilrec.files.outputs import write_text
from ilrec.files.plain_yaml import to_yaml
from ilrec.files.reading import read_json
from ilrec.files.steps import ResumableStep
from ilrec.processes import device_name, environment
from ilrec.ranking.results import read_ranking

# Where and when a step ran: of its marker, what is kept with the result.
WHERE_AND_WHEN = ("commit", "machine", "finished")
# Runs a command with its output in a log file, and returns its exit status. Tests replace it.
Execute = Callable[[list[str], Path], int]


class Experiment:
    """Runs what is not done, and knows what is."""

    def __init__(self, plan: Plan, results: Results, execute: Execute = run_command) -> None:
        self.plan = plan
        self.kept = results
        self.execute = execute
        self.started = time.monotonic()
        self.where = {"commit": environment([])["commit"], "machine": machine()}

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.0f} s] {text}", flush=True)

    def resumable(self, step: Step) -> ResumableStep:
        """The step as its marker knows it: made of its command, its settings, and the contents of
        all that it reads."""
        # A source counts by the digest of what it wrote: trained anew with another result, it makes
        # this step another one.
        inputs: dict[str, Any] = dict(step.files)
        for source in step.sources:
            inputs[source.title] = read_marker(source).get("product")
        wanted = {"command": step.command, "settings": step.settings, "inputs": inputs}
        clears = (step.log, step.clears) if step.clears else (step.log,)
        return ResumableStep(step.marker, wanted, (step.product,), clears)

    def is_kept(self, step: Step) -> bool:
        """Whether a ranking's result is there, made here or elsewhere."""
        if step.name == "train":
            return False
        row = self.plan.grid.rows[step.row]
        return self.kept.has(
            step.row,
            step.seed,
            self.plan.grid.split,
            self.plan.contents[step.row, step.seed],
            num_beams=self.plan.grid.num_beams if row.recipe else None,
        )

    def state(self, step: Step) -> str:
        """The state of the step's marker, or "waiting" for the steps that it starts from. A ranking
        is done only if its result is kept."""
        if self.is_kept(step):
            return "done"
        if any(self.state(source) != "done" for source in step.sources):
            return "waiting"
        # A ranking that was made but not kept (the process ended in between) is made again.
        state = self.resumable(step).state()
        if state == "done" and step.name != "train":
            return "interrupted"
        return state

    def needed(self, rows: Iterable[str]) -> list[Step]:
        """The steps of these rows' results that are not there, with the training that they need, in
        order."""
        wanted = set()
        for step in self.plan.steps:
            if step.name != "train" and step.row in rows and not self.is_kept(step):
                wanted |= {earlier.title for earlier in with_sources(step)}
        return [step for step in self.plan.steps if step.title in wanted]

    def run(self, rows: Iterable[str], keep_going: bool, budget: float) -> list[str]:
        """Run what is not done, in order. Returns what failed; without keep_going the first failure
        ends it.

        budget: seconds. A step is not started if it would take longer, as far as is known, than
            what is left of them.
        """
        todo = [step for step in self.needed(rows) if self.state(step) != "done"]
        self.say(
            f"{len(todo)} steps to do; output: {self.plan.output}, results: {self.kept.directory}"
        )
        # States are looked up again before each step: one that failed makes others wait.
        failures: list[str] = []
        for number, step in enumerate(todo):
            if time.monotonic() - self.started + self.seconds_to_result(step) > budget:
                self.say(
                    f"{step.title}: does not fit into what is left of the time; "
                    "the same command goes on from here"
                )
                break
            missing = [source.title for source in step.sources if self.state(source) != "done"]
            if missing:
                self.say(f"{step.title}: left out, it needs {', '.join(missing)}")
                continue
            self.say(f"{number + 1} of {len(todo)}, {step.title}{self.time_left(todo[number:])}")
            failure = self.try_step(step)
            if failure:
                failures.append(failure)
                if not keep_going:
                    break
                self.say(f"{step.title}: failed")
        return failures

    def try_step(self, step: Step) -> str:
        """Run a step that no other process is at work on; what went wrong, or an empty text."""
        try:
            # One lock for each run: two processes may work on different rows at the same time.
            step.directory.mkdir(parents=True, exist_ok=True)
            with FileLock(step.directory.with_suffix(".lock"), timeout=0):
                self.run_step(step)
        except Timeout:
            return f"{step.title}: another process is at work in {step.directory}"
        except InputError as error:
            return str(error)
        return ""

    def run_step(self, step: Step) -> None:
        """Run it, or go on with it. Raises InputError, which names the log, if it fails."""

        def work() -> str:
            status = self.execute(step.command, step.log)
            if status:
                raise InputError(
                    f"{step.title} failed with exit status {status}: {last_line(step.log)}\n"
                    f"  its output: {step.log}\n"
                    "  after mending, give the same command again: what is done is not repeated"
                )
            return product_digest(step)

        if step.settings is not None:
            write_text(step.directory / "settings.yaml", to_yaml(step.settings))
        self.resumable(step).run(work, **self.where)
        if step.name != "train":
            self.keep(step)

    def keep(self, step: Step) -> None:
        """Save what lasts of a run that is ranked: the ranking, and how its training went."""
        # Training: its time and its curve, if the method is trained.
        training = None
        trained = self.plan.trained.get((step.row, step.seed))
        if trained and trained.clears:
            marker = read_marker(trained)
            training = training_record(
                marker["seconds"],
                self.seconds_in_all(trained),
                trained.clears,
                {name: marker[name] for name in WHERE_AND_WHEN},
            )
        # The ranking, with the rank of each user's one target.
        ranking = read_ranking(step.product)
        ranks = ranking.target_ranks
        if len(np.unique(ranks.users)) < len(ranks.ranks):
            raise InputError(
                f"{step.product}: some users have several targets, and results hold one for each; "
                "expected data that is split leave-one-out"
            )
        marker = read_marker(step)
        facts = {name: marker[name] for name in ("seconds", *WHERE_AND_WHEN)}
        self.kept.save(
            step.row,
            step.seed,
            self.plan.grid.split,
            self.plan.contents[step.row, step.seed],
            training,
            {"metrics": ranking.measured.metrics, "protocol": ranking.protocol, **facts},
            ranks.ranks,
        )

    def time_left(self, left: list[Step]) -> str:
        """For a log line; empty for less than a minute, and if the time of a step is not known."""
        seconds = [self.seconds_of(step) for step in left]
        if not all(seconds) or sum(seconds) < 60:
            return ""
        return f"; about {sum(seconds) / 60:.0f} min for all that is left"

    def seconds_to_result(self, step: Step) -> float:
        """The time of a step and, if it trains, of the ranking that makes it a result."""
        seconds = self.seconds_of(step)
        if step.name == "train":
            seconds += self.seconds_of(self.plan.ranked[step.row, step.seed])
        return seconds

    def seconds_of(self, step: Step) -> float:
        """The mean time of the row's other seeds, else of other rows of its kind; 0 if none is
        known."""
        # Results tell how long their runs took, also on other machines.
        rows = self.plan.grid.rows
        of_row: list[float] = []
        of_kind: list[float] = []
        for row, seed in self.plan.ranked:
            content = self.kept.read(row, seed)
            if step.name == "train":
                part = content.get("training")
            else:
                part = content.get("rankings", {}).get(self.plan.grid.split)
            if not part or rows[row].baseline != rows[step.row].baseline:
                continue
            known = of_row if row == step.row else of_kind
            known.append(part["seconds"])
        known = of_row or of_kind
        return statistics.mean(known) if known else 0.0

    def seconds_in_all(self, step: Step) -> float:
        """The time of a step's command and of all that it starts from."""
        sources = sum(self.seconds_in_all(source) for source in step.sources)
        return read_marker(step)["seconds"] + sources


def read_marker(step: Step) -> dict[str, Any]:
    """Empty if the step was never begun here."""
    return read_json(step.marker) if step.marker.exists() else {}


def machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {device_name(torch.device('cuda'))}"
    return f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores"
