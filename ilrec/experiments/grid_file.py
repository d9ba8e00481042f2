"""Reads the grid of an experiment from a YAML file, and checks all of it before anything runs.

An unknown key, a field that ilrec/train.py would refuse, a row that names one that does not exist,
rows that wait for each other: each is one InputError with file and place, so that no mistake is
found after hours of training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.experiments.grid import ROOT, Grid, Row
from ilrec.experiments.grid_checks import check_fields, check_head, check_references, refuse_unknown
from ilrec.files.reading import read_yaml

GRID_KEYS = ("data", "split", "launcher", "ds_config", "num_beams", "shared", "rows", "compare")
ROW_KEYS = ("like", "baseline", "recipe", "script", "model", "sasrec", "fields", "seeds")
ROW_WORDS = ("baseline", "recipe", "script", "model", "sasrec")
ROW_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]*")  # it names a directory, too
# How a message calls the types that a key may have.
KIND_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "`field: value` lines"}


def read_grid(path: Path, data: str = "", split: str = "") -> Grid:
    """`data` and `split` override the file's. Raises InputError, which names the file and the
    field."""
    where = str(path)
    content = read_yaml(path)
    refuse_unknown(content, GRID_KEYS, where)
    rows = read_rows(content.get("rows"), path)
    data = data or typed(content, "data", str, "", where)
    if not data:
        raise InputError(f"{path}: data: not set; add `data: DIR` or give --data DIR")
    grid = Grid(
        path=path,
        data=str(ROOT / data),
        split=split or typed(content, "split", str, "test", where),
        launcher=typed(content, "launcher", list, ["python"], where),
        ds_config=typed(content, "ds_config", str, "", where),
        num_beams=typed(content, "num_beams", int, 20, where),
        shared=typed(content, "shared", dict, {}, where),
        rows={name: rows[name] for name in in_order(rows, path)},
        listed=list(rows),
        compare=read_comparisons(content, rows, path),
    )
    # Checks need the whole grid: a row names other rows.
    check_head(grid)
    for row in rows.values():
        check_references(grid, row)
        check_fields(grid, row)
    return grid


def typed(content: Mapping[str, Any], name: str, kind: type, default: Any, where: str) -> Any:
    """The value of a key. Raises InputError if it is of another type."""
    value = content.get(name, default)
    # True and false are whole numbers to Python.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {name}: expected {KIND_NAMES[kind]}, got {value!r}")
    return value


def read_rows(content: Any, path: Path) -> dict[str, Row]:
    """Rows in the file's order, each with what it takes over from the row that it is `like`."""
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path}: rows: expected `name: {{recipe: ...}}` or `name: {{baseline: ...}}` lines, "
            f"got {content!r}"
        )
    rows: dict[str, Row] = {}
    # What the file says of each row so far, with what the row took over.
    merged: dict[str, dict[str, Any]] = {}
    for name, given in content.items():
        where = f"{path}: rows.{name}"
        check_row_form(name, given, path)
        merged[name] = take_over(given, merged, where)
        words = {}
        for key in ROW_WORDS:
            words[key] = typed(merged[name], key, str, getattr(Row, key), where)
        # Seeds are the row's own: they are not taken over.
        seeds = read_seeds(given.get("seeds", [0]), where)
        rows[name] = Row(name, fields=merged[name]["fields"], seeds=seeds, **words)
    return rows


def check_row_form(name: Any, given: Any, path: Path) -> None:
    """A name that can be a directory, and a mapping of known keys."""
    if not isinstance(name, str) or not ROW_NAME.fullmatch(name):
        raise InputError(
            f"{path}: rows: {name!r} is no name for a row; expected letters, digits and . _ + = -"
        )
    if not isinstance(given, dict):
        raise InputError(f"{path}: rows.{name}: expected `field: value` lines, got {given!r}")
    refuse_unknown(given, ROW_KEYS, f"{path}: rows.{name}")


def take_over(
    given: Mapping[str, Any], above: Mapping[str, dict[str, Any]], where: str
) -> dict[str, Any]:
    """A row's keys over those of the row that it is `like`, one of those above it; field by
    field in `fields`."""
    like = typed(given, "like", str, "", where)
    if like and like not in above:
        raise InputError(f"{where}.like: expected a row above this one, got {like!r}")
    # The row above has taken over from its own model already, so one level is enough.
    model_row = above[like] if like else {}
    fields = {**model_row.get("fields", {}), **typed(given, "fields", dict, {}, where)}
    return {**model_row, **given, "fields": fields}


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    is_list = isinstance(value, list) and bool(value)
    if (
        not is_list
        or not all(type(seed) is int and seed >= 0 for seed in value)
        or len(set(value)) < len(value)
    ):
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
    needs = {row.name: row.needs for row in rows.values()}
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise InputError(f"{path}: rows: these wait for each other: {circle}") from None


def read_comparisons(
    content: Mapping[str, Any], rows: Mapping[str, Row], path: Path
) -> list[tuple[str, str]]:
    """The pairs of rows that are to be compared."""
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
