"""Any names and times, written in any kind of raw file, are read to the last character and
digit."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_files import found, write

# Each example writes its file anew, so that a directory for all of them is fine.
REPEATABLE: dict = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


def named(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Names of such characters, with letters at both ends, because spaces around a name do not
    count. Some look quoted."""
    quoted = st.sampled_from(['"', '"n', 'n"', '"n"', "n,n"])
    return quoted | st.text(characters, max_size=8).map(lambda text: f"n{text}n")


NAMES = named(st.characters(codec="utf-8", exclude_characters="\t\r\n"))
ANY_NAMES = named(st.characters(codec="utf-8"))
FRACTIONS = st.decimals(0, 2**53, allow_nan=False, allow_infinity=False, places=6)
TIMES = st.integers(0, 2**63 - 1) | FRACTIONS


def as_read(rows: list[tuple]) -> list[tuple]:
    """Times without a fraction are read as int."""
    return [(user, item, int(when) if when == int(when) else when) for user, item, when in rows]


def quoting(delimiter: str) -> Callable[[list[tuple]], str]:
    def text(rows: list[tuple]) -> str:
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter).writerows([("u", "i", "t"), *rows])
        return file.getvalue()

    return text


def plain(rows: list[tuple]) -> str:
    lines = [f"{user}\t{item}\t{when}\n" for user, item, when in [("u", "i", "t"), *rows]]
    return "".join(lines)


def lines_of_json(rows: list[tuple]) -> str:
    """One name with escapes and one without."""
    lines = []
    for user, item, when in rows:
        shown = json.dumps(item, ensure_ascii=False)
        lines.append(f'{{"u": {json.dumps(user)}, "i": {shown}, "t": {when}}}\n')
    return "".join(lines)


@pytest.mark.parametrize(
    ("name", "names", "write_rows", "options"),
    [
        ("x.tsv", NAMES, plain, {}),
        ("x.csv", ANY_NAMES, quoting(","), {}),
        ("x.jsonl", ANY_NAMES, lines_of_json, {}),
        ("x.tsv", ANY_NAMES, quoting("\t"), {"quoted_tsv": True}),
    ],
)
@given(data=st.data())
@settings(max_examples=60, **REPEATABLE)
def test_what_is_written_is_read(
    name: str, names: st.SearchStrategy, write_rows: Callable, options: dict, data, tmp_path: Path
):
    rows = data.draw(st.lists(st.tuples(names, names, TIMES), min_size=1, max_size=6))
    path = write(tmp_path / name, write_rows(rows))
    assert found(path, **options) == as_read(rows)


ROWS = st.tuples(ANY_NAMES, st.integers(0, 2**64 - 1), TIMES)


@given(rows=st.lists(ROWS, min_size=1, max_size=6))
@settings(max_examples=40, **REPEATABLE)
def test_what_is_written_as_parquet_is_read(rows: list[tuple], tmp_path: Path):
    users, items, times = zip(*rows, strict=True)
    exact = pa.array([Decimal(when) for when in times], pa.decimal128(38, 6))
    table = pa.table({"u": users, "i": pa.array(items, pa.uint64()), "t": exact})
    pq.write_table(table, tmp_path / "x.parquet")
    expected = [(user, str(item), when) for user, item, when in rows]
    assert found(tmp_path / "x.parquet") == as_read(expected)
