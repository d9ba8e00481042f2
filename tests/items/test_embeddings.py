"""Embeddings are found by item, whatever the order of the rows. A file that does not say which item
a row belongs to is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.items import embeddings
from ilrec.items.embeddings import ids_path, read_embeddings, write_embeddings

IDS = ["10", "9", "b"]
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_rows_are_found_by_item(tmp_path: Path):
    write_embeddings(tmp_path / "x.npy", ROWS, IDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ids.json", "x.npy"]
    assert read_embeddings(tmp_path / "x.npy", IDS).tolist() == ROWS.tolist()
    assert read_embeddings(tmp_path / "x.npy", ["b", "9", "10"]).tolist() == ROWS[::-1].tolist()
    # Numbers name items too.
    ids_path(tmp_path / "x.npy").write_text('[10, 9, "b"]')
    assert read_embeddings(tmp_path / "x.npy", IDS).tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            ["10", "9", "c"],
            r"x\.ids\.json: 3 items, the data has 3: item 'b' of the data has no row; "
            "make the embeddings of this data's",
        ),
        (
            ["10", "9"],
            r"x\.ids\.json: expected a JSON list of the 3 rows. item ids, .*, got a list of 2",
        ),
        (["10", "9", "9"], r"x\.ids\.json: item '9' is there twice"),
        (["10", "9", 1.5], r"x\.ids\.json: expected a JSON list"),
        ({"10": 0}, r"expected a JSON list .*, got a dict"),
        (
            None,
            r"x\.ids\.json: no such file, so that nothing says which row is which item; "
            "expected a JSON list .* train again",
        ),
    ],
)
def test_ids_that_do_not_fit(tmp_path: Path, ids, message: str):
    write_embeddings(tmp_path / "x.npy", ROWS, IDS)
    ids_path(tmp_path / "x.npy").unlink()
    if ids is not None:
        ids_path(tmp_path / "x.npy").write_text(json.dumps(ids))
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "x.npy", IDS)


def test_items_that_the_data_lacks(tmp_path: Path):
    write_embeddings(tmp_path / "x.npy", ROWS, IDS)
    with pytest.raises(InputError, match="3 items, the data has 2: item '9' is not in the data"):
        read_embeddings(tmp_path / "x.npy", ["10", "b"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[0], r"x\.npy: expected numbers \[items, dims\], got float32 \[2\]"),
        (np.array([["a"], ["b"], ["c"]]), r"expected numbers \[items, dims\], got <U1 \[3, 1\]"),
        (
            np.array([[1.0], [np.nan], [np.inf]]),
            r"x\.npy: the row of item '9' holds NaN or infinity \(2 such rows\)",
        ),
    ],
)
def test_arrays_that_are_no_embeddings(tmp_path: Path, rows: np.ndarray, message: str):
    write_embeddings(tmp_path / "x.npy", rows, IDS)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "x.npy", IDS)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file(tmp_path: Path, content: bytes):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npy: cannot be read as a \.npy array"):
        read_embeddings(tmp_path / "x.npy", IDS)


def test_an_archive_of_arrays(tmp_path: Path):
    np.savez(tmp_path / "x.npz", rows=ROWS)
    with pytest.raises(InputError, match=r"x\.npz: expected numbers \[items, dims\], got NpzFile"):
        read_embeddings(tmp_path / "x.npz", IDS)


def test_an_array_never_lies_beside_the_ids_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_embeddings(tmp_path / "x.npy", ROWS, IDS)
    monkeypatch.setattr(embeddings.np, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_embeddings(tmp_path / "x.npy", ROWS, IDS[::-1])
    assert not (tmp_path / "x.npy").exists()
