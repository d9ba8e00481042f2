"""Histories from the data and from files of every kind: the same records, and one message for what
is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ilrec.errors import InputError
from ilrec.interactions.dataset import assemble
from ilrec.serving.catalogue import Catalogue
from ilrec.serving.histories import Histories, of_split, of_users, read_histories, read_ids

USERS = {"ana": [2, 0, 1, 0], "bo": [1, 2, 0], "cy": [0, 1, 2]}
DATASET = assemble("small", USERS, ["a", "b", "c"], {}, "no files")
CATALOGUE = Catalogue(DATASET)
EXPECTED = {"ana": [2, 0], "bo": [1, 0, 1]}


def as_dict(histories: Histories) -> dict[str, list[int]]:
    return {user: row.tolist() for user, row in zip(histories.users, histories.rows, strict=True)}


def written(path: Path, content: str | dict) -> Path:
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return path


FILES = {
    "lists.jsonl": '{"user": "ana", "items": ["c", "a"]}\n\n'
    '{"items": ["b", "a", "b"], "user": "bo"}\n',
    "lists.json.gz": '{"user": "ana", "items": ["c", "a"]}\n'
    '{"user": "bo", "items": ["b", "a", "b"]}',
    "lists.csv": "user,items\nana,c a\nbo,b a b\n",
    "lists.tsv": "user\tage\titems\nana\t7\tc a\nbo\t8\tb a b\n",
    "lists.parquet": {"user": ["ana", "bo"], "items": [["c", "a"], ["b", "a", "b"]]},
    "rows.csv": "user,item\nana,c\nana,a\nbo,b\nbo,a\nbo,b\n",
    "times.csv": '"item","user","time"\na,ana,20\nc,ana,10\na,bo,5\nb,bo,3\nb,bo,7\n',
    "times.parquet": {
        "user": ["ana", "ana", "bo", "bo", "bo"],
        "item": ["a", "c", "a", "b", "b"],
        "time": [20, 10, 5, 3, 7],
    },
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind_hold_the_same(name, tmp_path):
    histories = read_histories(written(tmp_path / name, FILES[name]), CATALOGUE, "error")
    assert as_dict(histories) == EXPECTED
    histories.write(tmp_path / "histories.arrow")
    assert as_dict(Histories.read(tmp_path / "histories.arrow")) == EXPECTED


def test_whole_numbers_are_names_too(tmp_path):
    catalogue = Catalogue(assemble("numbers", {"1": [0]}, ["7", "8"], {}, "no files"))
    path = written(tmp_path / "h.jsonl", json.dumps({"user": 5, "items": [8, "7", 8]}))
    assert as_dict(read_histories(path, catalogue, "error")) == {"5": [1, 0, 1]}


def test_users_of_the_data():
    assert as_dict(of_split(DATASET, "all")) == USERS
    assert as_dict(of_split(DATASET, "test")) == {"ana": [2, 0, 1], "bo": [1, 2], "cy": [0, 1]}
    assert as_dict(of_split(DATASET, "valid")) == {"ana": [2, 0], "bo": [1], "cy": [0]}


def test_users_by_name(tmp_path, caplog):
    path = written(tmp_path / "users.txt", "cy\r\n\n ana \n")
    assert as_dict(of_users(DATASET, path, "error")) == {"cy": [0, 1, 2], "ana": [2, 0, 1, 0]}
    path.write_text("cy\ndi\n")
    with pytest.raises(InputError, match="1 of 2 users are not in the data, first 'di'"):
        of_users(DATASET, path, "error")
    assert as_dict(of_users(DATASET, path, "skip")) == {"cy": [0, 1, 2]}
    assert "first 'di'; skipped" in caplog.text
    path.write_text("cy\nana\ncy\n")
    with pytest.raises(InputError, match="user 'cy' is there more than once"):
        of_users(DATASET, path, "error")


def test_unknown_items_are_skipped_and_counted(tmp_path, caplog):
    path = written(tmp_path / "h.csv", "user,items\nana,x c a x\nbo,x\n")
    assert as_dict(read_histories(path, CATALOGUE, "skip")) == {"ana": [2, 0], "bo": []}
    assert "3 items are not in the catalogue and are skipped; 1 of 2 users have none" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "h.csv",
            "user,items\nana,c x\n",
            r"h\.csv:2: item 'x' is not in the catalogue of 3 items",
        ),
        ("h.csv", "user,items\nana,\n", r"h\.csv:2: user 'ana' has no items"),
        ("h.csv", "user,items\nana,c\nana,a\n", "user 'ana' is there more than once"),
        ("h.csv", "user,item\nana,c\nbo,a\nana,a\n", "user 'ana' is there more than once"),
        ("h.csv", "user,items\n", r"h\.csv: no users in it"),
        ("h.csv", "name,items\nana,c\n", "expected columns user and items, .* found name, items"),
        ("h.csv", "", r"h\.csv: expected columns user and items, .* found none"),
        ("h.csv", "user,item,time\nana,c,soon\n", r"h\.csv:2: time: expected a number"),
        ("h.csv", "user,items\nana,c,a\n", r"h\.csv:2: expected 2 fields .* got 3; mend the line$"),
        ("h.jsonl", '{"user": "ana"}\n', r"h\.jsonl:1: no field 'items'; it has user; mend"),
        ("h.jsonl", '{"user": "ana", "items": 3}', r"h\.jsonl:1: items: expected a list of item"),
        ("h.jsonl", '{"user": "ana", "items": [[]]}', r"h\.jsonl:1: item: expected a name"),
        ("h.jsonl", '{"user": null, "items": ["a"]}', r"h\.jsonl:1: user: expected a name"),
        ("h.jsonl", "[1]", r"h\.jsonl:1: expected a JSON object"),
        ("h.parquet", {"user": ["ana"], "age": [3]}, "expected columns user and items, .* age"),
        ("h.parquet", "no parquet", r"h\.parquet: not readable"),
        ("h.csv.gz", "", "h.csv.gz: expected columns user and items"),
        ("h.xlsx", "", r"expected a name that ends in \.jsonl"),
    ],
)
def test_what_is_wrong_is_named(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_histories(written(tmp_path / name, content), CATALOGUE, "error")


def test_missing_files_are_named(tmp_path):
    for name in ("h.csv", "h.jsonl", "h.parquet"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            read_histories(tmp_path / name, CATALOGUE, "error")
    with pytest.raises(InputError, match="ids.txt: cannot be read: .* expected one id on each"):
        read_ids(tmp_path / "ids.txt")
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(InputError, match="ids.txt: no ids in it"):
        read_ids(tmp_path / "ids.txt")
