"""Results that last: what is kept of a finished run, small enough to be committed beside its grid.

    RESULTS/ROW/seed-N.json    what it is made of; metrics and protocol of each split; a thin
                               training curve; time, commit, machine
    RESULTS/ROW/seed-N.npz     for each split, the target's rank of every user

A result is known by what it is made of: settings, contents of the data, and what the rows that it
starts from are made of. Paths and machines do not count, nor do weights, which two machines do not
make alike: a run that was done anywhere is done.

Shapes: U users.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.config.loading import load_config
from ilrec.errors import InputError
from ilrec.experiments.grid_checks import BASELINE_SETTINGS
from ilrec.files.outputs import whole_file, write_text
from ilrec.files.reading import read_json
from ilrec.ranking.results import smallest
from ilrec.training.metrics_log import METRICS_LOG, read_steps

# What is kept of a training curve: these entries of a log line, at so many of its points.
CURVE = ("step", "loss/preference", "negatives/per_token")
CURVE_POINTS = 50
# Fields of a ranking's protocol that are not kept: where things lay on the machine.
PLACES = ("data", "checkpoint")


@dataclass(frozen=True)
class Result:
    """One run in one split.

    place: its file. ranks_U: int64, the target's rank of each user.
    train_seconds: of its own training; seconds_in_all: with that of the runs it started from;
    wall_seconds: of its own training and its ranking.
    """

    place: Path
    seed: int
    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]
    ranks_U: np.ndarray
    curve: list[dict[str, float]]
    train_seconds: float
    seconds_in_all: float
    wall_seconds: float
    commits: set[str]
    machines: set[str]


@dataclass(frozen=True)
class Results:
    """The files of one grid."""

    directory: Path

    def path(self, row: str, seed: int) -> Path:
        return self.directory / row / f"seed-{seed}.json"

    def read(self, row: str, seed: int) -> dict[str, Any]:
        """The file's content; empty if there is no file. Raises InputError if it is no result."""
        path = self.path(row, seed)
        content = read_json(path) if path.exists() else {}
        if content and not {"made_of", "training", "rankings"} <= content.keys():
            raise InputError(
                f"{path}: expected a result that `ilrec experiment` wrote; "
                "restore it, or remove it to run again"
            )
        return content

    def has(
        self, row: str, seed: int, split: str, made_of: Mapping[str, Any], num_beams: int | None
    ) -> bool:
        """Whether this split is there, of a run made of the same. num_beams: of the ranking; None
        if the method has none."""
        # The number of beams belongs to a ranking, not to what the run is made of.
        content = self.read(row, seed)
        ranking = content.get("rankings", {}).get(split)
        if not ranking or ranking["protocol"].get("num_beams") != num_beams:
            return False
        return is_same(content["made_of"], made_of)

    def save(
        self,
        row: str,
        seed: int,
        split: str,
        made_of: Mapping[str, Any],
        training: Mapping[str, Any] | None,
        ranking: Mapping[str, Any],
        ranks_U: np.ndarray,
    ) -> None:
        """Add a split to the run's files. Splits of a run that was made of something else go."""
        path = self.path(row, seed)
        content = self.read(row, seed)
        # What is there already of the other split.
        rankings: dict[str, Any] = {}
        ranks: dict[str, np.ndarray] = {}
        if content and is_same(content["made_of"], made_of) and content["rankings"]:
            rankings = content["rankings"]
            ranks = self._ranks(path)
        rankings = {**rankings, split: without_places(ranking)}
        ranks = {**ranks, split: smallest(ranks_U)}

        with whole_file(path.with_suffix(".npz")) as beside:
            np.savez_compressed(beside, allow_pickle=False, **ranks)
        # Written last: a reader that finds the split here finds its ranks, too.
        whole = {"made_of": made_of, "training": training, "rankings": rankings}
        write_text(path, json.dumps(whole, indent=1) + "\n")

    def result(self, row: str, seed: int, split: str) -> Result | None:
        """What is kept of this run and split, whatever it is made of."""
        path = self.path(row, seed)
        content = self.read(row, seed)
        ranking = content.get("rankings", {}).get(split)
        training = content.get("training")
        if not ranking:
            return None
        # A baseline that is not trained has a ranking alone.
        parts = [training, ranking] if training else [ranking]
        return Result(
            place=path,
            seed=seed,
            metrics=ranking["metrics"],
            protocol=ranking["protocol"],
            ranks_U=self._ranks(path)[split].astype(np.int64),
            curve=training["curve"] if training else [],
            train_seconds=training["seconds"] if training else 0.0,
            seconds_in_all=training["seconds_in_all"] if training else 0.0,
            wall_seconds=sum(part["seconds"] for part in parts),
            commits={str(part["commit"]) for part in parts},
            machines={part["machine"] for part in parts},
        )

    def _ranks(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(path.with_suffix(".npz")) as file:
                return dict(file)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path.with_suffix('.npz')}: the ranks beside {path.name} cannot be read "
                f"({error}); restore both, or remove both to run again"
            ) from None


def is_same(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two runs are made of the same (experiment_plan.Plan.made_of).

    A setting that the record lacks did not exist when the run was made: it must be at its default
    now.
    """
    # Settings: those that both have must be equal, those that are new at their default.
    old, new = recorded["settings"], wanted["settings"]
    defaults = default_settings(wanted.get("method"))
    for name in new.keys() - old.keys():
        if new[name] != defaults.get(name):
            return False
    if old != {name: value for name, value in new.items() if name in old}:
        return False

    # Sources: the same ones, each made of the same.
    old_sources, new_sources = recorded.get("sources", {}), wanted.get("sources", {})
    if old_sources.keys() != new_sources.keys():
        return False
    if not all(is_same(old_sources[name], new_sources[name]) for name in old_sources):
        return False
    return _without_parts(recorded) == _without_parts(wanted)


def _without_parts(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """All that is compared as a whole: everything but the settings and the sources."""
    return {name: value for name, value in made_of.items() if name not in ("settings", "sources")}


def default_settings(baseline: str | None = None) -> dict[str, Any]:
    """Of a baseline, or of a training if None."""
    if baseline:
        kind = BASELINE_SETTINGS[baseline]
        return dataclasses.asdict(kind()) if kind else {}
    return load_config(None, {"data": "-", "output_dir": "-", "model": "-"}).flat()


def training_record(
    seconds: float, seconds_in_all: float, run: Path, where: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept of a training run beside its settings. run: its directory; SASRec's has no
    log."""
    curve = thin(read_steps(run)) if (run / METRICS_LOG).exists() else []
    return {
        "seconds": round(seconds, 1),
        "seconds_in_all": round(seconds_in_all, 1),
        "curve": curve,
        **where,
    }


def thin(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most CURVE_POINTS of a run's log lines, evenly spread, the last among them."""
    if not lines:
        return []
    # Places are rounded, so that two of them may fall together; each counts once.
    num_points = min(CURVE_POINTS, len(lines))
    places = np.linspace(0, len(lines) - 1, num_points).round().astype(int)
    points = []
    for place in np.unique(places):
        line = lines[place]
        points.append({name: round(float(line.get(name, 0.0)), 6) for name in CURVE})
    return points


def without_places(ranking: Mapping[str, Any]) -> dict[str, Any]:
    """The ranking without what differs from machine to machine."""
    protocol = {name: value for name, value in ranking["protocol"].items() if name not in PLACES}
    return {**ranking, "protocol": protocol}
