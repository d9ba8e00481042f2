"""Made-up results and grids, for the tests of comparisons and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilrec.experiments.grid import Grid, Row
from ilrec.experiments.results import Result
from ilrec.ranking.metrics import TargetRanks, ranking_metrics

NUMBERING = {"users_sha256": "u", "items_sha256": "i"}


def result(directory: Path, name: str, seed: int, ranks_U: np.ndarray, **protocol) -> Result:
    """A run with these ranks, one minute of training on top of another minute."""
    curve = []
    for step in (1, 2, 3):
        curve.append({"step": step, "loss/preference": 1 / step, "negatives/per_token": 3.0})
    return Result(
        place=directory / f"{name}-{seed}.json",
        seed=seed,
        metrics=ranking_metrics(TargetRanks.one_each(ranks_U), (1, 5, 10, 20)),
        protocol={"num_users": len(ranks_U), "num_items": 100, **NUMBERING, **protocol},
        ranks_U=ranks_U,
        curve=curve,
        train_seconds=60.0,
        seconds_in_all=120.0,
        wall_seconds=180.0,
        commits={"abc"},
        machines={"a machine"},
    )


def grid_of(directory: Path, *names: str) -> Grid:
    """A grid of these rows, the first two of which are compared."""
    path = directory / "tiny.yaml"
    path.write_text("rows: {}\n")
    return Grid(
        path=path,
        data="data",
        split="test",
        launcher=["python"],
        ds_config="",
        num_beams=20,
        shared={},
        rows={name: Row(name, recipe="r") for name in names},
        listed=list(names),
        compare=[(names[0], names[1])],
    )
