"""The grid of an experiment: a YAML file of rows, each a method that is trained and ranked. Read
and checked before anything runs.

    from experiment_grid import read_grid      # inside tools/; not a program.
    docs/experiments/README.md says what a file may hold

A grid is wrong as a whole: an unknown key, a field that ilrec/train.py would refuse, a row that
names one that is not there, rows that wait for each other. Each is one InputError with file and
place, so that no mistake is found after hours of training.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rank_baselines import METHODS, ItemKNNConfig

from ilrec.config.loading import build_section, load_config
from ilrec.config.sections import SECTIONS, SASRecConfig
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.files.reading import read_yaml

GRID_KEYS = ("data", "split", "launcher", "ds_config", "num_beams", "shared", "rows", "compare")
ROW_KEYS = ("like", "baseline", "recipe", "script", "model", "sasrec", "fields", "seeds")
TRAINING_FIELDS = tuple(
    field.name for section in SECTIONS.values() for field in dataclasses.fields(section)
)
# The grid says these in its own words (data, seeds, model: ROW, sasrec: ROW), and each run has its
# own directory.
SET_BY_THE_GRID = ("data", "output_dir", "seed", "resume", "sasrec")
# What each baseline can be set to; None: nothing.
BASELINE_SETTINGS: dict[str, Any] = {
    "popularity": None,
    "item_knn": ItemKNNConfig,
    "sasrec": SASRecConfig,
}
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]*")  # names a directory, too


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
        return [name for name in (self.model, self.sasrec) if name]

    @property
    def is_deterministic(self) -> bool:
        """It has no seed: one run stands for any number of them."""
        return self.baseline in ("popularity", "item_knn")


@dataclass(frozen=True)
class Grid:
    """rows: in dependency order for running; `listed` keeps the file's order, which is the
    table's."""

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
        """recipe < shared < fields. A row that starts from another drops what recipe and shared say
        of a model."""
        common = {**read_yaml(ROOT / row.recipe), **self.shared}
        if row.model:
            common = {
                name: value for name, value in common.items() if name not in ("init", "model")
            }
        return {
            name: value
            for name, value in {**common, **row.fields}.items()
            if name not in SET_BY_THE_GRID
        }

    def source_seed(self, source: str, seed: int) -> int:
        """The run of row `source` that a run with this seed starts from: the same seed's, or its
        only one."""
        seeds = self.rows[source].seeds
        return seeds[0] if len(seeds) == 1 else seed


def read_grid(path: Path, data: str = "", split: str = "") -> Grid:
    """`data` and `split` override the file's. Raises InputError naming the file and the field."""
    content = read_yaml(path)
    refuse_unknown(content, GRID_KEYS, str(path))
    rows = read_rows(content.get("rows"), path)
    data = data or typed(content, "data", str, "", str(path))
    if not data:
        raise InputError(f"{path}: data: not set; add `data: DIR` or give --data DIR")
    grid = Grid(
        path=path,
        data=str(ROOT / data),
        split=split or typed(content, "split", str, "test", str(path)),
        launcher=typed(content, "launcher", list, ["python"], str(path)),
        ds_config=typed(content, "ds_config", str, "", str(path)),
        num_beams=typed(content, "num_beams", int, 20, str(path)),
        shared=typed(content, "shared", dict, {}, str(path)),
        rows={name: rows[name] for name in in_order(rows, path)},
        listed=list(rows),
        compare=read_comparisons(content, rows, path),
    )
    check_head(grid)
    for row in rows.values():
        check_references(grid, row)
        check_fields(grid, row)
    return grid


def refuse_unknown(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown field {name!r}{nearest(str(name), known)}")


def typed(content: Mapping[str, Any], name: str, kind: type, default: Any, where: str) -> Any:
    value = content.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {name}: expected a {kind.__name__}, got {value!r}")
    return value


def read_rows(content: Any, path: Path) -> dict[str, Row]:
    """Rows in the file's order, each with what it takes over from the row that it is `like`."""
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path}: rows: expected `name: {{recipe: ...}}` or `name: {{baseline: ...}}` lines, got {content!r}"
        )
    rows: dict[str, Row] = {}
    merged: dict[str, dict[str, Any]] = {}
    for name, given in content.items():
        where = f"{path}: rows.{name}"
        if not isinstance(name, str) or not ROW_NAME.fullmatch(name):
            raise InputError(
                f"{path}: rows: {name!r} is no name for a row; expected letters, digits and . _ + = -"
            )
        if not isinstance(given, dict):
            raise InputError(f"{where}: expected `field: value` lines, got {given!r}")
        refuse_unknown(given, ROW_KEYS, where)
        fields = typed(given, "fields", dict, {}, where)
        model_row = merged.get(given["like"]) if "like" in given else {}
        if model_row is None:
            raise InputError(f"{where}.like: expected a row above this one, got {given['like']!r}")
        merged[name] = {**model_row, **given, "fields": {**model_row.get("fields", {}), **fields}}
        seeds = read_seeds(given.get("seeds", [0]), where)
        words = {
            key: typed(merged[name], key, str, getattr(Row, key), where)
            for key in ("baseline", "recipe", "script", "model", "sasrec")
        }
        rows[name] = Row(name, fields=merged[name]["fields"], seeds=seeds, **words)
    return rows


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    is_list = (
        isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    )
    if not is_list or len(set(value)) < len(value):
        raise InputError(
            f"{where}.seeds: expected a list of different whole numbers, 0 or more, got {value!r}"
        )
    return tuple(value)


def in_order(rows: Mapping[str, Row], path: Path) -> list[str]:
    """Names, each after those that it needs."""
    for row in rows.values():
        for needed in row.needs:
            if needed not in rows:
                raise InputError(
                    f"{path}: rows.{row.name}: no row {needed!r}{nearest(needed, rows)}"
                )
    try:
        return list(
            TopologicalSorter({row.name: row.needs for row in rows.values()}).static_order()
        )
    except CycleError as error:
        raise InputError(
            f"{path}: rows: these wait for each other: {' -> '.join(reversed(error.args[1]))}"
        ) from None


def check_head(grid: Grid) -> None:
    """All but the rows and comparisons."""
    if grid.split not in ("valid", "test"):
        raise InputError(f"{grid.path}: split: expected valid or test, got {grid.split!r}")
    if not grid.launcher or not all(isinstance(word, str) for word in grid.launcher):
        raise InputError(
            f'{grid.path}: launcher: expected words such as [python] or [deepspeed, --num_gpus, "2"], '
            f"got {grid.launcher!r}"
        )
    if grid.num_beams < 1:
        raise InputError(
            f"{grid.path}: num_beams: expected a positive number, got {grid.num_beams}"
        )
    if grid.ds_config and not (ROOT / grid.ds_config).is_file():
        raise InputError(f"{grid.path}: ds_config: no such file: {grid.ds_config}")
    refuse_places(grid.shared, f"{grid.path}: shared")
    refuse_unknown(grid.shared, TRAINING_FIELDS, f"{grid.path}: shared")


def refuse_places(fields: Mapping[str, Any], where: str) -> None:
    for name in SET_BY_THE_GRID:
        if name in fields:
            raise InputError(
                f"{where}.{name}: the grid says this in its own words: data, seeds, and `sasrec: ROW` in a row"
            )


def check_references(grid: Grid, row: Row) -> None:
    """One kind, rows of the right kind to start from, and a run of each for every seed."""
    where = f"{grid.path}: rows.{row.name}"
    if bool(row.baseline) == bool(row.recipe):
        raise InputError(f"{where}: expected either recipe or baseline")
    if row.baseline and (row.baseline not in METHODS or row.needs):
        raise InputError(
            f"{where}: expected baseline: {' or '.join(METHODS)}, without model and sasrec, got {row.baseline!r}"
        )
    if row.is_deterministic and row.seeds != (0,):
        raise InputError(
            f"{where}.seeds: {row.baseline} is the same for every seed; leave them out"
        )
    if row.recipe and not (ROOT / row.recipe).is_file():
        raise InputError(f"{where}.recipe: no such file: {row.recipe}")
    if row.recipe and not (ROOT / (shlex.split(row.script) or [""])[0]).is_file():
        raise InputError(
            f"{where}.script: no such file: {row.script!r}; expected for example tools/experiments/train_dpo.py --num_rejected 1"
        )
    if row.model and not grid.rows[row.model].recipe:
        raise InputError(f"{where}.model: expected a row with a recipe, got {row.model!r}")
    if row.sasrec and grid.rows[row.sasrec].baseline != "sasrec":
        raise InputError(
            f"{where}.sasrec: expected a row with `baseline: sasrec`, got {row.sasrec!r}"
        )
    for needed in row.needs:
        for seed in row.seeds:
            if grid.source_seed(needed, seed) not in grid.rows[needed].seeds:
                raise InputError(
                    f"{where}.seeds: row {needed!r} has no seed {seed}, and more than one to choose from"
                )


def check_fields(grid: Grid, row: Row) -> None:
    """The fields as the program that will read them checks them."""
    where = f"{grid.path}: rows.{row.name}.fields"
    refuse_places(row.fields, where)
    if "k_core" in row.fields:
        raise InputError(f"{where}.k_core: would give this row users of its own; set it in shared")
    if row.model and "model" in row.fields:
        raise InputError(f"{where}.model: this row starts from row {row.model!r}")
    kind = BASELINE_SETTINGS[row.baseline] if row.baseline else None
    refuse_unknown(
        row.fields,
        kind.__dataclass_fields__ if kind else () if row.baseline else TRAINING_FIELDS,
        where,
    )
    if kind:
        build_section(kind, {name: (value, where) for name, value in row.fields.items()})
    elif row.recipe:
        places = {"data": grid.data, "output_dir": "-"} | {
            name: "-" for name in ("model", "sasrec") if getattr(row, name)
        }
        try:
            load_config(None, grid.settings(row) | places)
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix('command line: ')}") from None


def read_comparisons(
    content: Mapping[str, Any], rows: Mapping[str, Row], path: Path
) -> list[tuple[str, str]]:
    pairs = typed(content, "compare", list, [], str(path))
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise InputError(
                f"{path}: compare: expected pairs of two rows such as [stage1, sft], got {pair!r}"
            )
        for name in pair:
            if name not in rows:
                raise InputError(f"{path}: compare: no row {name!r}{nearest(str(name), rows)}")
    return [(first, second) for first, second in pairs]
