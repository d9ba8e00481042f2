"""LC-Rec JSON: items, users, titles, and a message for each way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_files import write_json

from ilrec.errors import InputError
from ilrec.interactions.reading import read_interactions


def test_lcrec_items_users_and_titles(tmp_path: Path):
    """Items are numbered in the order of the item file's names as numbers, 2 before 10, and the
    unseen 7 counts: 2 -> 0, 7 -> 1, 10 -> 2."""
    write_json(tmp_path / "Set.inter.json", {"u2": [10, 2, 10], "u1": ["2", "10", "2", "10"]})
    items = {"10": {"title": " Ten "}, "7": {"description": "x"}, "2": {"title": "Zwei ä"}}
    write_json(tmp_path / "Set.item.json", items)
    dataset = read_interactions(tmp_path, k_core=99)

    assert dataset.name == "Set"
    assert dataset.user_ids == ["u1", "u2"]
    assert dataset.item_ids == ["2", "7", "10"]
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 0, 2], [2, 0, 2]]
    assert all(sequence.dtype == np.int32 for sequence in dataset.sequences)
    assert dataset.titles == ["Zwei ä", "", "Ten"]
    assert (dataset.num_users, dataset.num_items, dataset.num_dropped_users) == (2, 3, 0)


def test_lcrec_catalogue_without_item_file(tmp_path: Path):
    """The items are those of the index file if there is one, else those of the users. Ids that are
    not all numbers are sorted as text."""
    write_json(tmp_path / "Set.inter.json", {"u": ["b", "a", "b"]})
    assert read_interactions(tmp_path, 0).item_ids == ["a", "b"]

    write_json(tmp_path / "Set.index.json", {"b": ["<a_0>"], "a": ["<a_1>"], "10": ["<a_2>"]})
    dataset = read_interactions(tmp_path, 0)
    assert dataset.item_ids == ["10", "a", "b"]
    assert dataset.titles is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"expected \{user: \[item, ...\]\}, got a list"),
        ({"u": 3}, r"user 'u': expected a list of items"),
        ({"u": [1, None, 2]}, r"user 'u': expected a list of items"),
        ({"u": [1, 2.5, 2]}, r"user 'u': expected a list of items"),
        ({"u": [1, True, 2]}, r"user 'u': expected a list of items"),
    ],
)
def test_malformed_lcrec(tmp_path: Path, content: object, message: str):
    write_json(tmp_path / "Set.inter.json", content)
    with pytest.raises(InputError, match=rf"Set\.inter\.json: {message}"):
        read_interactions(tmp_path, 0)


def test_broken_json_names_its_line(tmp_path: Path):
    (tmp_path / "Set.inter.json").write_text('{"u": [1, 2,\n 3}')
    with pytest.raises(InputError, match=r"Set\.inter\.json:2:3"):
        read_interactions(tmp_path, 0)


def test_unknown_item_names_item_user_and_file(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"u": [1, 2, 3]})
    write_json(tmp_path / "Set.item.json", {"1": {"title": "a"}, "3": {"title": "b"}})
    message = r"Set\.item\.json: item '2', which user 'u' has in Set\.inter\.json"
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, 0)


def test_a_title_that_is_no_text(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"u": [1, 2, 3]})
    write_json(tmp_path / "Set.item.json", {"1": {"title": 5}})
    with pytest.raises(InputError, match=r"Set\.item\.json: item '1': expected"):
        read_interactions(tmp_path, 0)
