"""What is wrong in an experiment's grid: one InputError for each mistake, which names file and
place.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from ilrec.config.loading import build_section, load_config
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import SECTIONS
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.experiments.grid import ROOT, SET_BY_THE_GRID, Grid, Row, place
from ilrec.experiments.rank_baselines import METHODS, ItemKNNConfig

# What ilrec/train.py can be given.
TRAINING_FIELDS = tuple(
    field.name for section in SECTIONS.values() for field in dataclasses.fields(section)
)
# What each baseline can be set to; None: nothing.
BASELINE_SETTINGS: dict[str, Any] = {
    "popularity": None,
    "item_knn": ItemKNNConfig,
    "sasrec": SASRecConfig,
}


def refuse_unknown(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown field {name!r}{nearest(str(name), known)}")


def check_head(grid: Grid) -> None:
    """All but the rows and comparisons."""
    if grid.split not in ("valid", "test"):
        raise InputError(f"{grid.path}: split: expected valid or test, got {grid.split!r}")
    if not grid.launcher or not all(isinstance(word, str) for word in grid.launcher):
        raise InputError(
            f"{grid.path}: launcher: expected words such as [python] or "
            f'[deepspeed, --num_gpus, "2"], got {grid.launcher!r}'
        )
    if grid.num_beams < 1:
        raise InputError(f"{grid.path}: num_beams: expected 1 or more, got {grid.num_beams}")
    if grid.ds_config and not (ROOT / grid.ds_config).is_file():
        raise InputError(f"{grid.path}: ds_config: no such file: {grid.ds_config}")
    refuse_places(grid.shared, f"{grid.path}: shared")
    refuse_unknown(grid.shared, TRAINING_FIELDS, f"{grid.path}: shared")


def refuse_places(fields: Mapping[str, Any], where: str) -> None:
    """No field that the grid sets itself."""
    for name in SET_BY_THE_GRID:
        if name in fields:
            raise InputError(
                f"{where}.{name}: the grid sets this itself; use its own words data and seeds, and "
                "`sasrec: ROW` in a row"
            )


def check_references(grid: Grid, row: Row) -> None:
    """One kind of method, files and rows that exist, and for every seed a run to start from."""
    check_kind(grid, row)
    if row.recipe:
        check_files(grid, row)
    where = f"{grid.path}: rows.{row.name}"
    if row.model and not grid.rows[row.model].recipe:
        raise InputError(f"{where}.model: expected a row with a recipe, got {row.model!r}")
    if row.sasrec and grid.rows[row.sasrec].baseline != "sasrec":
        raise InputError(
            f"{where}.sasrec: expected a row with `baseline: sasrec`, got {row.sasrec!r}"
        )
    # A row starts from the run with its own seed, or from the only one that there is.
    for needed in row.needs:
        for seed in row.seeds:
            if grid.source_seed(needed, seed) not in grid.rows[needed].seeds:
                raise InputError(
                    f"{where}.seeds: row {needed!r} has no seed {seed}, and more than one to "
                    "choose from"
                )


def check_kind(grid: Grid, row: Row) -> None:
    """A recipe or a baseline; a baseline that exists, with what it can have."""
    where = f"{grid.path}: rows.{row.name}"
    if bool(row.baseline) == bool(row.recipe):
        raise InputError(f"{where}: expected either recipe or baseline")
    if row.baseline and (row.baseline not in METHODS or row.needs):
        raise InputError(
            f"{where}: expected baseline: {' or '.join(METHODS)}, without model and sasrec, "
            f"got {row.baseline!r}"
        )
    if row.is_deterministic and row.seeds != (0,):
        raise InputError(
            f"{where}.seeds: {row.baseline} is the same for every seed; leave them out"
        )


def check_files(grid: Grid, row: Row) -> None:
    """The recipe, and the script's file: the first word of `script`."""
    where = f"{grid.path}: rows.{row.name}"
    if not place(row.recipe).is_file():
        raise InputError(f"{where}.recipe: no such file: {row.recipe}")
    words = shlex.split(row.script)
    if not words or not place(words[0]).is_file():
        raise InputError(
            f"{where}.script: no such file: {row.script!r}; expected for example "
            "tools/experiments/train_dpo.py --num_rejected 1"
        )


def check_fields(grid: Grid, row: Row) -> None:
    """The fields, checked as the program that will read them does it."""
    where = f"{grid.path}: rows.{row.name}.fields"
    refuse_places(row.fields, where)
    # Rows are compared user by user, so all must have the same users and targets.
    for name in ("k_core", "num_targets", "split_time"):
        if name in row.fields:
            raise InputError(
                f"{where}.{name}: would give this row users of its own; set it in shared"
            )
    if row.model and "model" in row.fields:
        raise InputError(f"{where}.model: this row starts from row {row.model!r}")
    if row.baseline:
        check_baseline_fields(row, where)
    else:
        check_training_fields(grid, row, where)


def check_baseline_fields(row: Row, where: str) -> None:
    kind = BASELINE_SETTINGS[row.baseline]
    refuse_unknown(row.fields, kind.__dataclass_fields__ if kind else (), where)
    if kind:
        build_section(kind, {name: (value, where) for name, value in row.fields.items()})


def check_training_fields(grid: Grid, row: Row, where: str) -> None:
    refuse_unknown(row.fields, TRAINING_FIELDS, where)
    # Places that only a run has: the checks need some value for them.
    places = {"data": grid.data, "output_dir": "-"}
    if row.model:
        places["model"] = "-"
    if row.sasrec:
        places["sasrec"] = "-"
    try:
        load_config(None, grid.settings(row) | places)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('command line: ')}") from None
