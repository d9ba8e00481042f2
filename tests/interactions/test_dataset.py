"""Leave-one-out splits, users with too few items, and the order of names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import write_json

from ilrec.files.digests import fingerprint_of
from ilrec.interactions.dataset import ordered
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.reading import read_interactions


def lists(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_leave_one_out(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"0": [0, 1, 2, 3, 4], "1": [5, 6, 7]})
    dataset = read_interactions(tmp_path, 0)
    assert lists(dataset.training_sequences()) == [[0, 1, 2], [5]]

    valid = dataset.evaluation("valid")
    assert lists(valid.histories) == [[0, 1, 2], [5]]
    assert lists(valid.targets) == [[3], [6]]
    assert valid.next_items().tolist() == [3, 6]

    test = dataset.evaluation("test")
    assert lists(test.histories) == [[0, 1, 2, 3], [5, 6]]
    assert lists(test.targets) == [[4], [7]]
    assert test.users.tolist() == [0, 1]
    assert lists(test[1:].histories) == [[5, 6]]

    with pytest.raises(ValueError, match="expected valid or test"):
        dataset.evaluation("train")


def test_short_users_are_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """They keep their numbers, and have neither training items nor cases."""
    write_json(tmp_path / "Set.inter.json", {"a": [1, 2], "b": [1, 2, 3], "c": []})
    with caplog.at_level(logging.WARNING):
        dataset = read_interactions(tmp_path, 0)
    assert dataset.user_ids == ["a", "b", "c"]
    assert lists(dataset.training_sequences()) == [[], [0], []]
    assert dataset.evaluation("test").users.tolist() == [1]
    assert "2 of 3 users left out, because they have fewer than 3 items" in caplog.text


def test_fingerprint_follows_files_and_parts(tmp_path: Path):
    one = write_json(tmp_path / "one", {"a": 1})
    two = write_json(tmp_path / "two", {"a": 2})
    assert fingerprint_of([one], 5) == fingerprint_of([one], 5)
    distinct = {
        fingerprint_of([one], 5),
        fingerprint_of([two], 5),
        fingerprint_of([one], 6),
        fingerprint_of([one, two], 5),
    }
    assert len(distinct) == 4


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.from_regex(r"[0-9]{1,20}", fullmatch=True), unique=True))
def test_whole_numbers_are_ordered_as_numbers(names: list[str]):
    assert ordered(names) == sorted(names, key=lambda name: (int(name), name))


def test_names_of_thousands_of_digits_are_ordered():
    """int() refuses such a text."""
    nines, tenfold = "9" * 5000, "1" + "0" * 5000
    assert ordered([nines, tenfold, "8"]) == ["8", nines, tenfold]


def test_a_numbering_follows_users_items_and_their_order(tmp_path: Path):
    """Of all users, or of some of them. A history may change without it."""
    users_of = {
        "one": {"a": [1, 2, 3], "b": [3, 2, 1]},
        "two": {"a": [3, 2, 1], "c": [1, 2, 3]},
    }
    for name, users in users_of.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "Set.inter.json", users)
    first = read_interactions(tmp_path / "one", 0)
    second = read_interactions(tmp_path / "two", 0)

    assert first.numbering()["items_sha256"] == second.numbering()["items_sha256"]
    assert first.numbering()["users_sha256"] != second.numbering()["users_sha256"]
    user_a = slice(1)
    assert first.numbering(user_a)["users_sha256"] == second.numbering(user_a)["users_sha256"]
