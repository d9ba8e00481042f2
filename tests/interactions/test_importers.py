"""Interactions and titles of raw files: names, times and ratings; presets; and what is refused in a
field."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_files import COLUMNS, found, write

from ilrec.errors import InputError
from ilrec.interactions.findings import Findings
from ilrec.interactions.importers import PRESETS, read_files, read_titles


def test_presets_read_the_releases_fields(tmp_path: Path):
    """Field names as the releases have them. The one of 2018 counts seconds, that of 2023
    milliseconds."""
    old = write(
        tmp_path / "2018.json.gz",
        '{"reviewerID": "A", "asin": "B1", "unixReviewTime": 1500000000, "overall": 5.0}\n',
    )
    new = write(
        tmp_path / "2023.jsonl.gz",
        '{"user_id": "A", "asin": "child", "parent_asin": "B1", "timestamp": 1500000000123}\n',
    )
    assert found(old, PRESETS["amazon_2018"]) == [("A", "B1", 1500000000)]
    assert found(new, PRESETS["amazon_2023"]) == [("A", "B1", 1500000000123)]


def test_titles_of_the_wanted_items(tmp_path: Path):
    items = [
        {"parent_asin": "B1", "title": "One"},
        {"parent_asin": "B2", "title": None},
        {"parent_asin": "B3"},
    ]
    lines = [json.dumps(item) + "\n" for item in items]
    meta = write(tmp_path / "meta.jsonl", "".join(lines))
    columns = PRESETS["amazon_2023"]
    titles = read_titles(meta, columns, ["B1", "B2", "B3"], Findings())
    assert titles == {"B1": "One", "B2": "", "B3": ""}
    assert read_titles(meta, columns, ["B2"], Findings()) == {"B2": ""}


def test_python_literals_of_amazon_2014(tmp_path: Path):
    """The metadata of 2014 are Python's repr, one dict a line. They have None and single quotes,
    which JSON does not know."""
    items = [
        {"asin": "B1", "title": "It's", "price": None},
        {"asin": "B2", "title": 'Say "so"'},
        {"asin": "B3"},
    ]
    lines = [repr(item) + "\n" for item in items]
    meta = write(tmp_path / "meta.json.gz", "".join(lines))
    titles = read_titles(meta, PRESETS["amazon_2018"], ["B1", "B2", "B3"], Findings())
    assert titles == {"B1": "It's", "B2": 'Say "so"', "B3": ""}


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ms", tz="UTC"), pa.timestamp("ns")]
)
def test_parquet_times(tmp_path: Path, kind: pa.DataType):
    """A timestamp is its whole number in the column's own unit."""
    times = pa.array([1_500_000_000, 3], pa.int64()).cast(kind)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"u": ["a", "b"], "i": [1, 2], "t": times}), path)
    # Parquet has no seconds: pyarrow writes milliseconds.
    unit = 1000 if kind.unit == "s" else 1
    assert found(path) == [("a", "1", 1_500_000_000 * unit), ("b", "2", 3 * unit)]


def test_numbers_as_names_and_ratings(tmp_path: Path):
    path = write(
        tmp_path / "x.jsonl",
        '{"u": 7, "i": 8, "t": "5", "r": 4}\n{"u": 7, "i": 9, "t": 6, "r": 2}\n',
    )
    assert found(path) == [("7", "8", 5), ("7", "9", 6)]
    raw = read_files([path], COLUMNS, Findings(), min_rating=3)
    assert list(raw.item_names) == ["8"]
    assert raw.num_below_rating == 1

    message = r"x\.jsonl: expected at least .*: all 2 are rated below 4\.5, lower --min_rating"
    with pytest.raises(InputError, match=message):
        read_files([path], COLUMNS, Findings(), min_rating=4.5)
