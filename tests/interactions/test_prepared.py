"""Prepared directories: written, memory-mapped, opened by `datasets`; and each way in which one can
be damaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.prepared import (
    ITEMS,
    MANIFEST,
    USERS,
    new_directory,
    read_prepared,
    write_prepared,
)
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.reading import read_interactions


def make_dataset(titles: list[str] | None = None) -> InteractionDataset:
    return InteractionDataset(
        name="own",
        user_ids=["u", "\u00fc"],
        item_ids=["a", "b", "c"],
        sequences=Ragged.from_rows([[0, 1, 2], [2, 0, 1, 0]]),
        titles=titles,
        num_dropped_users=5,
        fingerprint="",
    )


def test_written_and_read_back(tmp_path: Path):
    titles = ["A", "", "\u00c7"]
    write_prepared(make_dataset(titles), tmp_path / "out", {"command": "x"})
    dataset = read_interactions(tmp_path / "out", k_core=3)
    assert dataset.name == "own"
    assert (dataset.num_users, dataset.num_items, dataset.num_dropped_users) == (2, 3, 5)
    assert list(dataset.user_ids) == ["u", "\u00fc"]
    assert list(dataset.item_ids) == ["a", "b", "c"]
    assert dataset.titles is not None
    assert list(dataset.titles) == titles
    assert [row.tolist() for row in dataset.sequences] == [[0, 1, 2], [2, 0, 1, 0]]

    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["about"] == {"command": "x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_times_are_kept_if_there_are_any(tmp_path: Path):
    """Mapped like the items. A directory of an earlier version has no such column."""
    rows = [[5, 6, 2**40], [1, 1, 2, 3]]
    timed = dataclasses.replace(make_dataset(), times=Ragged.from_rows(rows, np.int64))
    write_prepared(timed, tmp_path / "timed", {})
    times = read_prepared(tmp_path / "timed").times
    assert times is not None
    assert [row.tolist() for row in times] == rows
    assert times.values.dtype == np.int64
    assert not times.values.flags.owndata

    write_prepared(make_dataset(), tmp_path / "without", {})
    assert read_prepared(tmp_path / "without").times is None
    users = datasets.Dataset.from_file(str(tmp_path / "without" / USERS))
    assert users.column_names == ["user_id", "items"]


def test_sequences_are_mapped_not_copied(tmp_path: Path):
    write_prepared(make_dataset(), tmp_path / "out", {})
    dataset = read_prepared(tmp_path / "out")
    assert dataset.titles is None
    values = dataset.sequences.values
    assert not values.flags.owndata
    assert not values.flags.writeable
    assert values.dtype == np.int32


def test_fingerprint_follows_the_content(tmp_path: Path):
    def fingerprint(name: str, titles: list[str]) -> str:
        write_prepared(make_dataset(titles), tmp_path / name, {})
        return read_prepared(tmp_path / name).fingerprint

    one = fingerprint("one", ["A", "B", "C"])
    assert len(one) == 64
    assert fingerprint("same", ["A", "B", "C"]) == one
    assert fingerprint("other", ["A", "B", "D"]) != one


def test_datasets_opens_the_files(tmp_path: Path):
    write_prepared(make_dataset(), tmp_path / "out", {})
    users = datasets.Dataset.from_file(str(tmp_path / "out" / USERS))
    assert users[1] == {"user_id": "\u00fc", "items": [2, 0, 1, 0]}


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    message = "full: exists already; expected a new or an empty directory"
    with pytest.raises(InputError, match=message):
        write_prepared(make_dataset(), tmp_path / "full", {})
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "new") as beside:
        (beside / "half").touch()
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def old_format(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"format": 99}')


def manifest_without_a_name(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"format": 1}')


def truncated_users(directory: Path) -> None:
    (directory / USERS).write_bytes((directory / USERS).read_bytes()[:200])


def no_items(directory: Path) -> None:
    (directory / ITEMS).unlink()


def users_in_place_of_items(directory: Path) -> None:
    (directory / ITEMS).write_bytes((directory / USERS).read_bytes())


def items_of_another_order(directory: Path) -> None:
    """As many items as make_dataset's, numbered otherwise."""
    other = directory.with_name("other")
    write_prepared(dataclasses.replace(make_dataset(), item_ids=["c", "b", "a"]), other, {})
    (directory / ITEMS).write_bytes((other / ITEMS).read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (old_format, "dataset.json: expected format 1"),
        (manifest_without_a_name, "dataset.json: name: expected text, got None"),
        (truncated_users, "users.arrow: not readable as Arrow"),
        (no_items, "items.arrow: not readable as Arrow"),
        (users_in_place_of_items, "out: .* are not those that dataset.json was written with"),
        (items_of_another_order, "out: .* are not those that .*; make the directory again"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str):
    write_prepared(make_dataset(), tmp_path / "out", {})
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        read_prepared(tmp_path / "out")
