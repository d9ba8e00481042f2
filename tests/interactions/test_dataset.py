"""Leave-one-out splits, and users with too few items."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lcrec import write_json

from ilrec.files.digests import fingerprint_of
from ilrec.interactions.dataset import ordered
from ilrec.interactions.reading import read_interactions


def test_leave_one_out(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"0": [0, 1, 2, 3, 4], "1": [5, 6, 7]})
    dataset = read_interactions(tmp_path, 0)
    assert [s.tolist() for s in dataset.training_sequences()] == [[0, 1, 2], [5]]
    histories, targets = dataset.evaluation("valid")
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 1, 2], [5]], [3, 6])
    histories, targets = dataset.evaluation("test")
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 1, 2, 3], [5, 6]], [4, 7])
    with pytest.raises(ValueError, match="expected valid or test"):
        dataset.evaluation("train")


def test_short_users_are_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_json(tmp_path / "Set.inter.json", {"a": [1, 2], "b": [1, 2, 3], "c": []})
    with caplog.at_level(logging.WARNING):
        dataset = read_interactions(tmp_path, 0)
    assert (dataset.user_ids, dataset.num_dropped_users) == (["b"], 2)
    assert "2 of 3 users left out" in caplog.text


def test_fingerprint_follows_files_and_parts(tmp_path: Path):
    one, two = write_json(tmp_path / "one", {"a": 1}), write_json(tmp_path / "two", {"a": 2})
    assert fingerprint_of([one], 5) == fingerprint_of([one], 5)
    assert (
        len(
            {
                fingerprint_of([one], 5),
                fingerprint_of([two], 5),
                fingerprint_of([one], 6),
                fingerprint_of([one, two], 5),
            }
        )
        == 4
    )


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.from_regex(r"[0-9]{1,20}", fullmatch=True), unique=True))
def test_whole_numbers_are_ordered_as_such(names: list[str]):
    assert ordered(names) == sorted(names, key=lambda name: (int(name), name))


def test_names_of_thousands_of_digits_are_ordered():
    """Where int() gives up."""
    assert ordered(["9" * 5000, "1" + "0" * 5000, "8"]) == ["8", "9" * 5000, "1" + "0" * 5000]


def test_a_numbering_follows_users_items_and_their_order(tmp_path: Path):
    """Of all users, or of some; a history may change without it."""
    one, two = {"a": [1, 2, 3], "b": [3, 2, 1]}, {"a": [3, 2, 1], "c": [1, 2, 3]}
    for name, users in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "Set.inter.json", users)
    first, second = (read_interactions(tmp_path / name, 0) for name in ("one", "two"))
    assert first.numbering()["items_sha256"] == second.numbering()["items_sha256"]
    assert first.numbering()["users_sha256"] != second.numbering()["users_sha256"]
    assert first.numbering(slice(1))["users_sha256"] == second.numbering(slice(1))["users_sha256"]
