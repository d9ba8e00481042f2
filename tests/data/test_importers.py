"""Readers of raw files: what they find, and a message with file and line for each way in which a line or a file can be wrong."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ilrec.data import importers
from ilrec.data.importers import PRESETS, BadLines, Columns, read_files, read_titles
from ilrec.errors import InputError

COLUMNS = Columns("u", "i", "t", "i", "title", "r")
ROWS = [("a", "x", 3), ("b", "y", 1), ("a", "y", 2)]


def found(path: Path, columns: Columns = COLUMNS, bad: BadLines | None = None, min_rating: float | None = None) -> list[tuple]:
    raw = read_files([path], columns, bad or BadLines(0), min_rating)
    users, items = list(raw.user_names), list(raw.item_names)
    return [(users[u], items[i], t) for u, i, t in zip(*(array.tolist() for array in raw.arrays()), strict=True)]


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def json_lines() -> str:
    return "".join(json.dumps({"u": u, "i": i, "t": t, "r": t}) + "\n" for u, i, t in ROWS)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.csv", "x.csv.gz", "x.tsv", "x.parquet"])
def test_every_kind_gives_the_same(tmp_path: Path, name: str):
    path, delimiter = tmp_path / name, "\t" if "tsv" in name else ","
    if "json" in name:
        write(path, json_lines() + "\n")  # a blank line is no line
    elif name == "x.parquet":
        users, items, times = zip(*ROWS, strict=True)
        pq.write_table(pa.table({"t": times, "u": users, "other": [0, 0, 0], "i": items}), path)
    else:
        write(path, delimiter.join(("t", "u", "note", "i")) + "\n"
              + "".join(delimiter.join((str(t), u, '"two\nlines"', i)) + "\n" for u, i, t in ROWS))
    assert found(path) == ROWS


def test_presets_read_the_releases_fields(tmp_path: Path):
    """Field names as the releases have them; 2018 counts seconds, 2023 milliseconds."""
    old = write(tmp_path / "2018.json.gz", '{"reviewerID": "A", "asin": "B1", "unixReviewTime": 1500000000, "overall": 5.0}\n')
    new = write(tmp_path / "2023.jsonl.gz", '{"user_id": "A", "asin": "child", "parent_asin": "B1", "timestamp": 1500000000123}\n')
    assert found(old, PRESETS["amazon_2018"]) == [("A", "B1", 1500000000)]
    assert found(new, PRESETS["amazon_2023"]) == [("A", "B1", 1500000000123)]
    items = [{"parent_asin": "B1", "title": "One"}, {"parent_asin": "B2", "title": None}, {"parent_asin": "B3"}]
    meta = write(tmp_path / "meta.jsonl", "".join(json.dumps(item) + "\n" for item in items))
    assert read_titles(meta, PRESETS["amazon_2023"], ["B1", "B2", "B3"], BadLines(0)) == {"B1": "One", "B2": "", "B3": ""}
    assert read_titles(meta, PRESETS["amazon_2023"], ["B2"], BadLines(0)) == {"B2": ""}


def test_python_literals_of_amazon_2014(tmp_path: Path):
    """The metadata of 2014 are Python's repr, one dict a line: None and single quotes, which JSON has not."""
    items = [{"asin": "B1", "title": "It's", "price": None}, {"asin": "B2", "title": 'Say "so"'}, {"asin": "B3"}]
    meta = write(tmp_path / "meta.json.gz", "".join(repr(item) + "\n" for item in items))
    titles = read_titles(meta, PRESETS["amazon_2018"], ["B1", "B2", "B3"], BadLines(0))
    assert titles == {"B1": "It's", "B2": 'Say "so"', "B3": ""}


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms", tz="UTC"), pa.timestamp("ns")])
def test_parquet_times(tmp_path: Path, kind: pa.DataType):
    """A timestamp is its whole number in the column's own unit."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"u": ["a", "b"], "i": [1, 2], "t": pa.array([1_500_000_000, 3], pa.int64()).cast(kind)}), path)
    unit = 1000 if kind.unit == "s" else 1  # Parquet has no seconds: pyarrow writes milliseconds
    assert found(path) == [("a", "1", 1_500_000_000 * unit), ("b", "2", 3 * unit)]


def test_numbers_as_names_and_ratings(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", '{"u": 7, "i": 8, "t": "5", "r": 4}\n{"u": 7, "i": 9, "t": 6, "r": 2}\n')
    assert found(path) == [("7", "8", 5), ("7", "9", 6)]
    raw = read_files([path], COLUMNS, BadLines(0), min_rating=3)
    assert (list(raw.item_names), raw.num_below_rating) == (["8"], 1)
    with pytest.raises(InputError, match=r"x\.jsonl: expected at least one .*: all 2 are rated below 4\.5, lower --min_rating"):
        read_files([path], COLUMNS, BadLines(0), min_rating=4.5)


GOOD = '{"u": "a", "i": "x", "t": 1}\n'


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.jsonl", GOOD + "{oops\n", r"x\.jsonl:2: not valid JSON"),
    ("x.jsonl", GOOD + "{'u': 'a'}\n", r"x\.jsonl:2: no field 'i'; it has u"),
    ("x.jsonl", GOOD.encode() + b'{"u": "\xe9"}\n', r"x\.jsonl:2: not valid JSON .*utf-8"),
    ("x.jsonl", GOOD + "[1]\n", r"x\.jsonl:2: expected a JSON object, got a list"),
    ("x.jsonl", GOOD + '{"u": "a", "t": 1}\n', r"x\.jsonl:2: no field 'i'; it has u, t"),
    ("x.jsonl", GOOD + '{"u": " ", "i": "x", "t": 1}\n', r"x\.jsonl:2: u: expected a name or a whole number, got ''"),
    ("x.jsonl", GOOD + '{"u": "a", "i": [1], "t": 1}\n', r"x\.jsonl:2: i: expected a name"),
    ("x.jsonl", GOOD + '{"u": "a", "i": "x", "t": "soon"}\n', r"x\.jsonl:2: t: expected a number, 0 or more, got 'soon'"),
    ("x.jsonl", GOOD + '{"u": "a", "i": "x", "t": NaN}\n', r"x\.jsonl:2: t: expected a number"),
    ("x.jsonl", GOOD + '{"u": "a", "i": "x", "t": -1}\n', r"x\.jsonl:2: t: expected a number"),
    ("x.jsonl", GOOD + '{"u": "a", "i": "x", "t": 1' + "0" * 400 + "}\n", r"x\.jsonl:2: t: expected a number, .* got 10{79}"),
    ("x.jsonl", GOOD + '{"u": "a\\ud83d", "i": "x", "t": 1}\n', r"x\.jsonl:2: u: expected Unicode text, got 'a\\ud83d'"),
    ("x.jsonl", GOOD + "[" * 100_000 + "\n", r"x\.jsonl:2: not valid JSON"),
    ("x.jsonl", GOOD + "{'u': open('x')}\n", r"x\.jsonl:2: not valid JSON \(malformed node"),
    ("x.jsonl", GOOD + "{'u': 'a'\n", r"x\.jsonl:2: not valid JSON \('\{' was never closed"),
    ("x.csv", 'u,i,t\n"a\nb",x,1\na,x\n', r"x\.csv:4: expected 3 fields as in the header, got 2"),
    ("x.csv", 'u,i,t\na,x,1\na,"x\ny,2\nb,y,3\n', r"x\.csv:3: not valid CSV \(unexpected end of data\)"),
])
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, name: str, text: str | bytes, message: str):
    path = write(tmp_path / name, text)
    with pytest.raises(InputError, match=message + ".*; mend the line, or skip such lines with --max_bad_lines"):
        found(path)
    bad = BadLines(1)
    assert len(found(path, bad=bad)) == 1 and bad.found == 1


def test_more_bad_lines_than_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "x.jsonl", "no\n" * 40 + GOOD)
    with pytest.raises(InputError, match=r"x\.jsonl:31: .*\(30 before it were skipped\)"):
        found(path, bad=BadLines(30))
    assert len(caplog.records) == importers.MAX_WARNINGS


@pytest.mark.parametrize(("name", "text", "message"), [
    ("x.csv", "u,i,when\n", r"x\.csv:1: expected a column 't', found u, i, when"),
    ("x.csv", "", r"x\.csv:1: empty file; expected a header with u, i, t"),
    ("x.csv", b"u,i,t\na,\xe9,1\n", r"x\.csv:2: not UTF-8 .*; save the file as UTF-8"),
    ("x.txt", "", r"x\.txt: expected a name that ends in \.jsonl"),
    ("x.parquet", "no", r"x\.parquet: not readable \(.*; check that it is complete"),
    ("x.jsonl", "\n", r"x\.jsonl: expected at least one interaction, found none$"),
    ("none.jsonl", None, r"none\.jsonl: no such file"),
])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes | None, message: str):
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(InputError, match=message):
        found(tmp_path / name, bad=BadLines(100))


def test_a_line_after_a_skipped_one_is_read(tmp_path: Path):
    """csv.reader goes on behind a line that it refuses; u, i and t of the two others are found."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\n"b"c,y,2\nd,z,3\n')
    assert found(path, bad=BadLines(1)) == [("a", "x", 1), ("d", "z", 3)]


def test_damaged_parquet(tmp_path: Path):
    """The footer is whole, the first column's page is not."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"u": [str(i * i) for i in range(10_000)], "i": range(10_000), "t": range(10_000)}), path)
    content = bytearray(path.read_bytes())
    content[1000:5000] = b"\xff" * 4000
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: not readable \("):
        found(path)


def test_bad_lines_are_not_fewer_than_none():
    with pytest.raises(InputError, match="max_bad_lines: expected 0 or more, got -1"):
        BadLines(-1)


def test_truncated_gzip(tmp_path: Path):
    path = write(tmp_path / "x.jsonl.gz", json_lines() * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"x\.jsonl\.gz: damaged or incomplete gzip .*download it again"):
        found(path)


def test_progress_says_rate_and_time_left(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(importers, "SECONDS_BETWEEN_PROGRESS", 0)
    monkeypatch.setattr(importers, "LINES_BETWEEN_CLOCKS", 1)
    with caplog.at_level(logging.INFO):
        found(write(tmp_path / "x.jsonl", json_lines()))
    assert "x.jsonl: 3 lines, " in caplog.text and " a second, 0 s left" in caplog.text
