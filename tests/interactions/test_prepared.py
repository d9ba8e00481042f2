"""Prepared directories: written, memory-mapped, opened by `datasets`; and each way in which one can
be damaged."""

from __future__ import annotations

import dataclasses
import json
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
    sequences = Ragged.from_rows([[0, 1, 2], [2, 0, 1, 0]])
    return InteractionDataset("own", ["u", "\u00fc"], ["a", "b", "c"], sequences, titles, 5, "")


def test_written_and_read_back(tmp_path: Path):
    write_prepared(make_dataset(["A", "", "\u00c7"]), tmp_path / "out", {"command": "x"})
    dataset = read_interactions(tmp_path / "out", k_core=3)
    assert (dataset.name, dataset.num_users, dataset.num_items, dataset.num_dropped_users) == (
        "own",
        2,
        3,
        5,
    )
    assert (list(dataset.user_ids), list(dataset.item_ids)) == (["u", "\u00fc"], ["a", "b", "c"])
    assert (
        dataset.titles is not None
        and list(dataset.titles) == ["A", "", "\u00c7"]
        and list(dataset.titles[1:]) == ["", "\u00c7"]
    )
    assert [row.tolist() for row in dataset.sequences] == [[0, 1, 2], [2, 0, 1, 0]]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["about"] == {"command": "x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_sequences_are_mapped_not_copied(tmp_path: Path):
    write_prepared(make_dataset(), tmp_path / "out", {})
    dataset = read_prepared(tmp_path / "out")
    assert dataset.titles is None
    assert (
        not dataset.sequences.values.flags.owndata and not dataset.sequences.values.flags.writeable
    )
    assert dataset.sequences.values.dtype == np.int32


def test_fingerprint_follows_the_content(tmp_path: Path):
    for name, titles in (
        ("one", ["A", "B", "C"]),
        ("same", ["A", "B", "C"]),
        ("other", ["A", "B", "D"]),
    ):
        write_prepared(make_dataset(titles), tmp_path / name, {})
    one, same, other = (
        read_prepared(tmp_path / name).fingerprint for name in ("one", "same", "other")
    )
    assert one == same != other and len(one) == 64


def test_datasets_opens_the_files(tmp_path: Path):
    write_prepared(make_dataset(), tmp_path / "out", {})
    assert datasets.Dataset.from_file(str(tmp_path / "out" / USERS))[1] == {
        "user_id": "\u00fc",
        "items": [2, 0, 1, 0],
    }


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(
        InputError, match="full: exists already; expected a new or an empty directory"
    ):
        write_prepared(make_dataset(), tmp_path / "full", {})
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "new") as beside:
        (beside / "half").touch()
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def items_of(directory: Path) -> bytes:
    """As many items as make_dataset's, in another order."""
    write_prepared(dataclasses.replace(make_dataset(), item_ids=["c", "b", "a"]), directory, {})
    return (directory / ITEMS).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / MANIFEST).write_text('{"format": 99}'), "dataset.json: expected format 1"),
        (
            lambda d: (d / MANIFEST).write_text('{"format": 1}'),
            "dataset.json: name: expected text, got None",
        ),
        (
            lambda d: (d / USERS).write_bytes((d / USERS).read_bytes()[:200]),
            "users.arrow: not readable as Arrow",
        ),
        (lambda d: (d / ITEMS).unlink(), "items.arrow: not readable as Arrow"),
        (
            lambda d: (d / ITEMS).write_bytes((d / USERS).read_bytes()),
            "out: .* are not those that dataset.json was written with",
        ),
        (
            lambda d: (d / ITEMS).write_bytes(items_of(d.with_name("other"))),
            "out: .* are not those that .*; make the directory again",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str):
    write_prepared(make_dataset(), tmp_path / "out", {})
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        read_prepared(tmp_path / "out")
