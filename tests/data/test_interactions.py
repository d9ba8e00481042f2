"""Readers of both formats, splits, the k-core, and a message for each way in which files can be wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ilrec.data.interactions import k_core, read_interactions, write_lcrec
from ilrec.errors import InputError

INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_inter(directory: Path, rows: list[tuple[str, str, object]], header: str = INTER_HEADER) -> Path:
    lines = "".join(f"{user}\t{item}\t5\t{time}\n" for user, item, time in rows)
    (directory / "tiny.inter").write_text(header + lines, encoding="utf-8")
    return directory / "tiny.inter"


def test_lcrec_items_users_and_titles(tmp_path: Path):
    """Item numbers follow the item file, as numbers (2 before 10); the unseen 7 counts: 2 -> 0, 7 -> 1, 10 -> 2."""
    write_json(tmp_path / "Set.inter.json", {"u2": [10, 2, 10], "u1": ["2", "10", "2", "10"]})
    items = {"10": {"title": " Ten "}, "7": {"description": "x"}, "2": {"title": "Zwei ä"}}
    write_json(tmp_path / "Set.item.json", items)
    dataset = read_interactions(tmp_path, k_core=99)
    assert (dataset.name, dataset.user_ids, dataset.item_ids) == ("Set", ["u1", "u2"], ["2", "7", "10"])
    assert [s.tolist() for s in dataset.sequences] == [[0, 2, 0, 2], [2, 0, 2]]
    assert all(s.dtype == np.int64 for s in dataset.sequences)
    assert dataset.titles == ["Zwei ä", "", "Ten"]
    assert (dataset.num_users, dataset.num_items, dataset.num_dropped_users) == (2, 3, 0)


def test_lcrec_catalogue_without_item_file(tmp_path: Path):
    """The index file's items, where there is one; else those seen. Ids that are not all numbers sort by text."""
    write_json(tmp_path / "Set.inter.json", {"u": ["b", "a", "b"]})
    assert read_interactions(tmp_path, 0).item_ids == ["a", "b"]
    write_json(tmp_path / "Set.index.json", {"b": ["<a_0>"], "a": ["<a_1>"], "10": ["<a_2>"]})
    dataset = read_interactions(tmp_path, 0)
    assert (dataset.item_ids, dataset.titles) == (["10", "a", "b"], None)


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


def test_k_core_by_hand():
    """k = 2. Item 9 has one interaction and goes; user 3 then has one left and goes; item 7 then has one, user 2's.

    User 2 keeps items 5 and 6, and 5 and 6 keep users 1 and 2: the core.
    """
    users = np.array([1, 1, 2, 2, 2, 3, 3])
    items = np.array([5, 6, 5, 6, 7, 7, 9])
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False, False, False]
    assert k_core(users, items, 1).all()
    assert not k_core(users, items, 4).any()


def test_recbole_time_order_ties_and_core(tmp_path: Path):
    """User 1 by time: 30, at 1, then 20 and 10, both at 2, in file order. Item 40, seen once, is not in the 2-core."""
    rows = [("1", "20", 2), ("2", "10", 5), ("1", "40", 3), ("1", "10", 2.0), ("2", "30", 4), ("2", "20", 6),
            ("1", "30", 1)]
    write_inter(tmp_path, rows)
    (tmp_path / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tTen\tx\n20\tTwenty\ty\n40\tForty\tz\n30\tDreißig\tw\n",
        encoding="utf-8")
    dataset = read_interactions(tmp_path, k_core=2)
    assert (dataset.name, dataset.user_ids, dataset.item_ids) == ("tiny", ["1", "2"], ["10", "20", "30"])
    assert [s.tolist() for s in dataset.sequences] == [[2, 1, 0], [2, 0, 1]]
    assert dataset.titles == ["Ten", "Twenty", "Dreißig"]
    assert read_interactions(tmp_path, k_core=0).item_ids == ["10", "20", "30", "40"]


def test_recbole_item_file_without_titles(tmp_path: Path):
    write_inter(tmp_path, [("1", str(item), item) for item in range(3)])
    (tmp_path / "tiny.item").write_text("item_id:token\tyear:float\n0\t1999\n", encoding="utf-8")
    assert read_interactions(tmp_path, 0).titles is None


@pytest.mark.parametrize(("text", "message"), [
    (INTER_HEADER + "1\t2\t5\n", r"tiny.inter:2: expected 4 tab-separated fields as in the header, got 3"),
    (INTER_HEADER + "1\t2\t5\t7\n1\t2\t5\tsoon\n", r"tiny.inter:3: timestamp: expected a number, got 'soon'"),
    (INTER_HEADER + "1\t2\t5\tnan\n", r"tiny.inter:2: timestamp: expected a number"),
    (INTER_HEADER + "1\t\t5\t7\n", r"tiny.inter:2: .*empty field"),
    ("user_id:token\titem_id:token\n1\t2\n", r"tiny.inter:1: expected a column timestamp"),
    (INTER_HEADER, r"tiny.inter: no interactions"),
    ("", r"tiny.inter:1: empty file"),
    (INTER_HEADER + "1\t2\t5\t1\n" * 2, r"tiny.inter: no user with at least 3 items is left"),
    (INTER_HEADER + "".join(f"1\t{i}\t5\t1\n" for i in range(3)), r"tiny.inter: no user .* lower k_core"),
])
def test_malformed_recbole(tmp_path: Path, text: str, message: str):
    (tmp_path / "tiny.inter").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, k_core=2)


def test_not_utf8(tmp_path: Path):
    (tmp_path / "tiny.inter").write_bytes(INTER_HEADER.encode() + b"1\t\xe9\t5\t1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_interactions(tmp_path, 0)


@pytest.mark.parametrize(("content", "message"), [
    ([1], r"expected \{user: \[item, ...\]\}, got a list"),
    ({"u": 3}, r"user 'u': expected a list of items"),
    ({"u": [1, None, 2]}, r"user 'u': expected a list of items"),
    ({"u": [1, 2.5, 2]}, r"user 'u': expected a list of items"),
    ({"u": [1, True, 2]}, r"user 'u': expected a list of items"),
    ({}, "no user with at least 3 items"),
])
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
    with pytest.raises(InputError, match=r"Set\.item\.json: item '2', which user 'u' has in Set\.inter\.json"):
        read_interactions(tmp_path, 0)
    write_json(tmp_path / "Set.item.json", {"1": {"title": 5}})
    with pytest.raises(InputError, match=r"Set\.item\.json: item '1': expected"):
        read_interactions(tmp_path, 0)


def test_which_files(tmp_path: Path):
    """Neither kind, both kinds, a directory that is not there, and two item files of other names."""
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"\*\.inter\.json .* or \*\.inter .*found neither"):
            read_interactions(directory, 0)
    write_json(tmp_path / "Set.inter.json", {"u": [1, 2, 3]})
    for name in ("a.item.json", "b.item.json"):
        write_json(tmp_path / name, {str(item): {} for item in range(4)})
    with pytest.raises(InputError, match="expected Set.item.json or a single"):
        read_interactions(tmp_path, 0)
    write_inter(tmp_path, [])
    with pytest.raises(InputError, match="found Set.inter.json, tiny.inter"):
        read_interactions(tmp_path, 0)


def test_written_as_lcrec_and_read_back(tmp_path: Path):
    write_inter(tmp_path, [("7", str(item), item) for item in (3, 1, 2)])
    (tmp_path / "tiny.item").write_text("item_id:token\ttitle:token_seq\n3\tDrei\n1\tÉin\n", encoding="utf-8")
    dataset = read_interactions(tmp_path, 0)
    write_lcrec(dataset, tmp_path / "out")
    again = read_interactions(tmp_path / "out", 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tiny.inter.json", "tiny.item.json"]
    assert (again.name, again.user_ids, again.item_ids) == ("tiny", ["7"], ["1", "2", "3"])
    assert again.titles == ["Éin", "", "Drei"]
    assert [s.tolist() for s in again.sequences] == [s.tolist() for s in dataset.sequences] == [[0, 1, 2]]
