"""Readers of raw files: what they find, and a message with file and line for each way in which one
can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_files import found, write

from ilrec.errors import InputError
from ilrec.interactions.findings import Findings

ROWS = [("a", "x", 3), ("b", "y", 1), ("a", "y", 2)]


def json_lines() -> str:
    lines = [json.dumps({"u": u, "i": i, "t": t, "r": t}) + "\n" for u, i, t in ROWS]
    return "".join(lines)


def delimited(delimiter: str, note: str) -> str:
    """ROWS with their columns in another order, and a field that holds `note`."""
    lines = [delimiter.join(("t", "u", "note", "i"))]
    for user, item, time in ROWS:
        lines.append(delimiter.join((str(time), user, note, item)))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "name",
    ["x.jsonl", "x.json", "x.jsonl.gz", "x.csv", "x.csv.gz", "x.tsv", "x.tsv.gz", "x.parquet"],
)
def test_every_kind_gives_the_same(tmp_path: Path, name: str):
    path = tmp_path / name
    if "json" in name:
        # A blank line is no line.
        write(path, json_lines() + "\n")
    elif name == "x.parquet":
        users, items, times = zip(*ROWS, strict=True)
        pq.write_table(pa.table({"t": times, "u": users, "other": [0, 0, 0], "i": items}), path)
    elif "tsv" in name:
        write(path, delimited("\t", '"a quote'))
    else:
        write(path, delimited(",", '"two\nlines"'))
    assert found(path) == ROWS


GOOD = '{"u": "a", "i": "x", "t": 1}\n'


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("{oops", r"not valid JSON"),
        ("{'u': 'a'}", r"no field 'i'; it has u"),
        (b'{"u": "\xe9"}', r"not valid JSON .*utf-8"),
        ("[1]", r"expected a JSON object, got a list"),
        ('{"u": "a", "t": 1}', r"no field 'i'; it has u, t"),
        ('{"u": " ", "i": "x", "t": 1}', r"u: expected a name or a whole number, got ''"),
        ('{"u": "a", "i": [1], "t": 1}', r"i: expected a name"),
        ('{"u": "a", "i": "x", "t": "soon"}', r"t: expected a number, got 'soon'"),
        ('{"u": "a", "i": "x", "t": NaN}', r"t: expected a number"),
        ('{"u": "a", "i": "x", "t": -1}', r"t: expected a number, 0 or more, got -1"),
        (
            '{"u": "a", "i": "x", "t": 1' + "0" * 400 + "}",
            r"t: expected a number below 2\*\*63, got 10{79}",
        ),
        (
            '{"u": "a\\ud83d", "i": "x", "t": 1}',
            r"u: expected Unicode text, got 'a\\ud83d'",
        ),
        ('{"u": "a", "i": "x", "t": 1e' + "9" * 20 + "}", r"not valid JSON"),
        ("[" * 100_000, r"not valid JSON"),
        ("{'u': open('x')}", r"not valid JSON \(malformed node"),
        ("{'u': 'a'", r"not valid JSON \('\{' was never closed"),
    ],
)
def test_a_bad_line_of_json_is_named_or_skipped(
    tmp_path: Path, second_line: str | bytes, message: str
):
    content = second_line if isinstance(second_line, bytes) else second_line.encode()
    path = write(tmp_path / "x.jsonl", GOOD.encode() + content + b"\n")
    check_named_or_skipped(path, r"x\.jsonl:2: " + message)


def test_a_bad_line_of_csv_is_named_or_skipped(tmp_path: Path):
    """The record before it spans the lines 2 and 3."""
    path = write(tmp_path / "x.csv", 'u,i,t\n"a\nb",x,1\na,x\n')
    check_named_or_skipped(path, r"x\.csv:4: expected 3 fields as in the header, got 2")


def check_named_or_skipped(path: Path, message: str) -> None:
    """Of two records one is bad: refused by name, or skipped and counted if that is allowed."""
    mend = ".*; mend the line, or skip such lines with --max_bad_lines"
    with pytest.raises(InputError, match=message + mend):
        found(path)
    findings = Findings(1)
    assert len(found(path, findings=findings)) == 1
    assert findings.num_bad == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "u,i,when\n", r"x\.csv:1: expected a column 't', found u, i, when"),
        (
            "x.csv",
            "u,i,t,u\n",
            r"x\.csv:1: column 'u' is there twice, among u, i, t, u; rename one",
        ),
        (
            "x.csv",
            "u,i,t\ra,x,1\rb,y,2\r",
            r"x\.csv:1: lines end in a carriage return alone; save the file with line feeds",
        ),
        ("x.tsv", "u\ti\tt\ra\tx\t1\r", r"x\.tsv:1: lines end in a carriage return alone"),
        (
            "x.tsv",
            '"u"\t"i"\t"t"\n',
            r'expected a column \'u\', found "u", "i", "t"; import with --quoted_tsv',
        ),
        ("x.csv", "", r"x\.csv:1: empty file; expected a header with u, i, t"),
        ("x.csv", b"u,i,t\na,\xe9,1\n", r"x\.csv:2: not UTF-8 .*; save the file as UTF-8"),
        ("x.txt", "", r"x\.txt: expected a name that ends in \.jsonl"),
        ("x.parquet", "no", r"x\.parquet: not readable \(.*; check that it is complete"),
        ("x.jsonl", "\n", r"x\.jsonl: expected at least one interaction, found none$"),
        ("none.jsonl", None, r"none\.jsonl: no such file"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, name: str, text: str | bytes | None, message: str
):
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(InputError, match=message):
        found(tmp_path / name, findings=Findings(100))


def test_a_line_after_a_skipped_one_is_read(tmp_path: Path):
    """csv.reader goes on behind a line that it refuses."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\n"b"c,y,2\nd,z,3\n')
    assert found(path, findings=Findings(1)) == [("a", "x", 1), ("d", "z", 3)]


def test_quoting_in_a_tab_separated_file_that_is_asked_for(tmp_path: Path):
    path = write(tmp_path / "x.tsv.gz", 'u\ti\tt\na\t"a ""quoted"" name"\t1\n"b\tc"\td\t2\n')
    assert found(path, quoted_tsv=True) == [("a", 'a "quoted" name', 1), ("b\tc", "d", 2)]


def test_truncated_gzip(tmp_path: Path):
    path = write(tmp_path / "x.jsonl.gz", json_lines() * 100)
    path.write_bytes(path.read_bytes()[:-20])
    message = r"x\.jsonl\.gz: damaged or incomplete gzip .*download it again"
    with pytest.raises(InputError, match=message):
        found(path)


def test_damaged_parquet(tmp_path: Path):
    """The footer is whole, the page of the first column is not."""
    path = tmp_path / "x.parquet"
    users = [str(number * number) for number in range(10_000)]
    pq.write_table(pa.table({"u": users, "i": range(10_000), "t": range(10_000)}), path)
    content = bytearray(path.read_bytes())
    content[1000:5000] = b"\xff" * 4000
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: not readable \("):
        found(path)


def test_short_floats_in_parquet(tmp_path: Path):
    """A float32 rating is read by its digits, 4.1 and not 4.0999999. Times in seconds do not fit
    into a float32."""
    ratings = pa.array(np.array([4.1, 4.0], np.float32))
    columns = {"u": ["a", "b"], "i": ["x", "y"], "t": [1, 2], "r": ratings}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert found(tmp_path / "x.parquet", min_rating=4.1) == [("a", "x", 1)]

    columns["t"] = pa.array(np.array([1.5e9, 1.0], np.float32))
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    message = r"x\.parquet: column 't': numbers of 16,777,216 and more have lost .*; write"
    with pytest.raises(InputError, match=message):
        found(tmp_path / "x.parquet")
