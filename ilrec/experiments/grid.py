"""The grid of an experiment: its rows, each a method that is trained and ranked, and what all rows
share.

grid_file.py reads a grid from YAML, grid_checks.py refuses what is wrong in it. What a file may
hold: docs/experiments/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilrec.files.reading import read_yaml

# The directory that holds the package: a checkout's, or that of installed packages.
HOME = Path(__file__).resolve().parents[2]
# Where commands run, and where what a grid names is looked for: the checkout, wherever the command
# is given; without one, the current directory.
ROOT = HOME if (HOME / "setup.py").exists() else Path.cwd()
# The grid has its own words for these (data, seeds, model: ROW, sasrec: ROW), and each run has its
# own directory.
SET_BY_THE_GRID = ("data", "output_dir", "seed", "resume", "sasrec")


def place(name: str) -> Path:
    """What a grid names by a path, below ROOT. A recipe or script of the package, such as
    ilrec/recipes/sft.yaml, is found without a checkout, too."""
    path = ROOT / name
    return path if path.exists() else HOME / name


@dataclass(frozen=True)
class Row:
    """One method: a baseline, or a recipe that `script` trains. model and sasrec name the rows that
    it starts from."""

    name: str
    baseline: str = ""
    recipe: str = ""
    script: str = "ilrec/train.py"
    model: str = ""
    sasrec: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)

    @property
    def needs(self) -> list[str]:
        """The rows that it starts from."""
        return [name for name in (self.model, self.sasrec) if name]

    @property
    def is_deterministic(self) -> bool:
        """It has no seed: one run stands for any number of them."""
        return self.baseline in ("popularity", "item_knn")


@dataclass(frozen=True)
class Grid:
    """rows: in the order of running, each after those that it starts from. `listed` keeps the
    file's order, which is the table's."""

    path: Path
    data: str
    split: str
    launcher: list[str]
    ds_config: str
    num_beams: int
    shared: Mapping[str, Any]
    rows: dict[str, Row]
    listed: list[str]
    compare: list[tuple[str, str]]

    def settings(self, row: Row) -> dict[str, Any]:
        """The fields that ilrec/train.py is given: recipe < shared < the row's own fields, without
        those that the grid sets itself."""
        settings = {**read_yaml(place(row.recipe)), **self.shared}
        if row.model:
            # The row starts from another one: the model that recipe and shared name is not used.
            settings.pop("init", None)
            settings.pop("model", None)
        settings |= row.fields
        return {name: value for name, value in settings.items() if name not in SET_BY_THE_GRID}

    def source_seed(self, source: str, seed: int) -> int:
        """The run of row `source` that a run with this seed starts from: the same seed's, or its
        only one."""
        seeds = self.rows[source].seeds
        return seeds[0] if len(seeds) == 1 else seed
