"""Readers of record files: what they find, and a message with file and line for each way in which
one can be wrong."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_tables import found, write

from ilrec.errors import InputError
from ilrec.interactions import findings, text_lines
from ilrec.interactions.findings import Findings

ROWS = [("a", "x", 3), ("b", "y", 1), ("a", "y", 2)]


def json_lines() -> str:
    return "".join(json.dumps({"u": u, "i": i, "t": t, "r": t}) + "\n" for u, i, t in ROWS)


@pytest.mark.parametrize(
    "name",
    ["x.jsonl", "x.json", "x.jsonl.gz", "x.csv", "x.csv.gz", "x.tsv", "x.tsv.gz", "x.parquet"],
)
def test_every_kind_gives_the_same(tmp_path: Path, name: str):
    path, tabs = tmp_path / name, "tsv" in name
    delimiter, note = ("\t", '"a quote') if tabs else (",", '"two\nlines"')
    if "json" in name:
        write(path, json_lines() + "\n")  # a blank line is no line
    elif name == "x.parquet":
        users, items, times = zip(*ROWS, strict=True)
        pq.write_table(pa.table({"t": times, "u": users, "other": [0, 0, 0], "i": items}), path)
    else:
        write(
            path,
            delimiter.join(("t", "u", "note", "i"))
            + "\n"
            + "".join(delimiter.join((str(t), u, note, i)) + "\n" for u, i, t in ROWS),
        )
    assert found(path) == ROWS


GOOD = '{"u": "a", "i": "x", "t": 1}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", GOOD + "{oops\n", r"x\.jsonl:2: not valid JSON"),
        ("x.jsonl", GOOD + "{'u': 'a'}\n", r"x\.jsonl:2: no field 'i'; it has u"),
        ("x.jsonl", GOOD.encode() + b'{"u": "\xe9"}\n', r"x\.jsonl:2: not valid JSON .*utf-8"),
        ("x.jsonl", GOOD + "[1]\n", r"x\.jsonl:2: expected a JSON object, got a list"),
        ("x.jsonl", GOOD + '{"u": "a", "t": 1}\n', r"x\.jsonl:2: no field 'i'; it has u, t"),
        (
            "x.jsonl",
            GOOD + '{"u": " ", "i": "x", "t": 1}\n',
            r"x\.jsonl:2: u: expected a name or a whole number, got ''",
        ),
        ("x.jsonl", GOOD + '{"u": "a", "i": [1], "t": 1}\n', r"x\.jsonl:2: i: expected a name"),
        (
            "x.jsonl",
            GOOD + '{"u": "a", "i": "x", "t": "soon"}\n',
            r"x\.jsonl:2: t: expected a number, got 'soon'",
        ),
        ("x.jsonl", GOOD + '{"u": "a", "i": "x", "t": NaN}\n', r"x\.jsonl:2: t: expected a number"),
        (
            "x.jsonl",
            GOOD + '{"u": "a", "i": "x", "t": -1}\n',
            r"x\.jsonl:2: t: expected a number, 0 or more, got -1",
        ),
        (
            "x.jsonl",
            GOOD + '{"u": "a", "i": "x", "t": 1' + "0" * 400 + "}\n",
            r"x\.jsonl:2: t: expected a number below 2\*\*63, got 10{79}",
        ),
        (
            "x.jsonl",
            GOOD + '{"u": "a\\ud83d", "i": "x", "t": 1}\n',
            r"x\.jsonl:2: u: expected Unicode text, got 'a\\ud83d'",
        ),
        (
            "x.jsonl",
            GOOD + '{"u": "a", "i": "x", "t": 1e' + "9" * 20 + "}\n",
            r"x\.jsonl:2: not valid JSON",
        ),
        ("x.jsonl", GOOD + "[" * 100_000 + "\n", r"x\.jsonl:2: not valid JSON"),
        ("x.jsonl", GOOD + "{'u': open('x')}\n", r"x\.jsonl:2: not valid JSON \(malformed node"),
        ("x.jsonl", GOOD + "{'u': 'a'\n", r"x\.jsonl:2: not valid JSON \('\{' was never closed"),
        (
            "x.csv",
            'u,i,t\n"a\nb",x,1\na,x\n',
            r"x\.csv:4: expected 3 fields as in the header, got 2",
        ),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, name: str, text: str | bytes, message: str):
    path = write(tmp_path / name, text)
    with pytest.raises(
        InputError, match=message + ".*; mend the line, or skip such lines with --max_bad_lines"
    ):
        found(path)
    findings = Findings(1)
    assert len(found(path, findings=findings)) == 1 and findings.num_bad == 1


def test_more_bad_lines_than_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "x.jsonl", "no\n" * 40 + GOOD)
    with pytest.raises(InputError, match=r"x\.jsonl:31: .*\(30 before it were skipped\)"):
        found(path, findings=Findings(30))
    assert len(caplog.records) == findings.MAX_WARNINGS


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
    """csv.reader goes on behind a line that it refuses; u, i and t of the two others are found."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\n"b"c,y,2\nd,z,3\n')
    assert found(path, findings=Findings(1)) == [("a", "x", 1), ("d", "z", 3)]


def test_damaged_parquet(tmp_path: Path):
    """The footer is whole, the first column's page is not."""
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table(
            {"u": [str(i * i) for i in range(10_000)], "i": range(10_000), "t": range(10_000)}
        ),
        path,
    )
    content = bytearray(path.read_bytes())
    content[1000:5000] = b"\xff" * 4000
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: not readable \("):
        found(path)


def test_bad_lines_are_not_fewer_than_none():
    with pytest.raises(InputError, match="max_bad_lines: expected 0 or more, got -1"):
        Findings(-1)


def test_truncated_gzip(tmp_path: Path):
    path = write(tmp_path / "x.jsonl.gz", json_lines() * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        InputError, match=r"x\.jsonl\.gz: damaged or incomplete gzip .*download it again"
    ):
        found(path)


def test_progress_says_rate_and_time_left(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(text_lines, "SECONDS_BETWEEN_PROGRESS", 0)
    monkeypatch.setattr(text_lines, "LINES_BETWEEN_CLOCKS", 1)
    with caplog.at_level(logging.INFO):
        found(write(tmp_path / "x.jsonl", json_lines()))
    assert "x.jsonl: 3 lines, " in caplog.text and " a second, 0 s left" in caplog.text


def test_a_quote_that_is_never_closed_takes_all_lines_with_it(tmp_path: Path):
    """Those lines count as malformed, each of them: one line that may be skipped does not cost a
    file."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\na,"x,2\nb,y,3\nc,z,4\n')
    message = r"x\.csv:3: not valid CSV \(unexpected end of data\) \(from here to line 5, because of a quote\); mend the line"
    for allowed in (0, 2):
        with pytest.raises(InputError, match=message):
            found(path, findings=Findings(allowed))
    assert found(path, findings=Findings(3)) == [("a", "x", 1)]


def test_a_record_that_spans_lines_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Two quotes, lines apart, make one valid record of all between them: as meant here as it would
    be by mistake."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\n"b\nc,y,2\nd",y,2\ne,"z\n",3\n')
    findings = Findings()
    assert found(path, findings=findings) == [("a", "x", 1), ("b\nc,y,2\nd", "y", 2), ("e", "z", 3)]
    assert findings.report() == {"records that span lines": "2, first at x.csv:3"}
    assert len(caplog.records) == 1
    assert "x.csv:3: a quote makes one record of the lines from here to line 5" in caplog.text


def test_tab_separated_files_have_no_quoting_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """What pandas writes by default, read both ways; as it stands, what looks quoted is said."""
    path = write(tmp_path / "x.tsv", 'u\ti\tt\na\t"a ""quoted"" name"\t1\n"b\tc"\t2\n')
    findings = Findings()
    assert found(path, findings=findings)[0] == ("a", '"a ""quoted"" name"', 1)
    assert findings.report() == {"lines with fields within quotes": "1, first at x.tsv:2"}
    assert (
        'x.tsv:2: the quotes around "a ""quoted"" name" are kept' in caplog.text
        and "--quoted_tsv" in caplog.text
    )
    path = write(tmp_path / "y.tsv.gz", 'u\ti\tt\na\t"a ""quoted"" name"\t1\n"b\tc"\td\t2\n')
    assert found(path, quoted_tsv=True) == [("a", 'a "quoted" name', 1), ("b\tc", "d", 2)]
    header = write(tmp_path / "z.tsv", '"u"\t"i"\t"t"\n')
    with pytest.raises(
        InputError, match=r'expected a column \'u\', found "u", "i", "t"; import with --quoted_tsv'
    ):
        found(header)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_only_line_feeds_end_a_line(tmp_path: Path, name: str):
    """A byte order mark is none of the text, \r\n is a line's end, and what else Unicode calls a
    line break is not."""
    text = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    if name == "x.jsonl":
        content = json.dumps({"u": text, "i": "x", "t": 1}, ensure_ascii=False) + "\r\n"
    else:
        delimiter = "\t" if name == "x.tsv" else ","
        content = f"u{delimiter}i{delimiter}t\r\n{text}{delimiter}x{delimiter}1\r\n"
    assert found(write(tmp_path / name, "\ufeff" + content * (1 if name != "x.jsonl" else 2)))[
        0
    ] == (text, "x", 1)


REPEATABLE: dict = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}  # each example writes its file anew
NEITHER_TABS_NOR_BREAKS = st.characters(codec="utf-8", exclude_characters="\t\r\n")
QUOTED = st.sampled_from(['"', '"n', 'n"', '"n"', "n,n"])
# Letters at both ends, because spaces around a name do not count.
NAMES = QUOTED | st.text(NEITHER_TABS_NOR_BREAKS, max_size=8).map(lambda text: f"n{text}n")
ANY_NAMES = QUOTED | st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"n{text}n")
TIMES = st.integers(0, 2**63 - 1) | st.decimals(
    0, 2**53, allow_nan=False, allow_infinity=False, places=6
)


def as_read(rows: list[tuple]) -> list[tuple]:
    return [(user, item, int(when) if when == int(when) else when) for user, item, when in rows]


def quoting(delimiter: str) -> Callable[[list[tuple]], str]:
    def text(rows: list[tuple]) -> str:
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter).writerows([("u", "i", "t"), *rows])
        return file.getvalue()

    return text


def plain(rows: list[tuple]) -> str:
    return "".join(f"{user}\t{item}\t{when}\n" for user, item, when in [("u", "i", "t"), *rows])


def lines_of_json(rows: list[tuple]) -> str:
    return "".join(
        f'{{"u": {json.dumps(user)}, "i": {json.dumps(item, ensure_ascii=False)}, "t": {when}}}\n'
        for user, item, when in rows
    )


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
    """Any names and times in any of the forms: the same table, to the last character and digit."""
    rows = data.draw(st.lists(st.tuples(names, names, TIMES), min_size=1, max_size=6))
    assert found(write(tmp_path / name, write_rows(rows)), **options) == as_read(rows)


@given(
    rows=st.lists(st.tuples(ANY_NAMES, st.integers(0, 2**64 - 1), TIMES), min_size=1, max_size=6)
)
@settings(max_examples=40, **REPEATABLE)
def test_what_is_written_as_parquet_is_read(rows: list[tuple], tmp_path: Path):
    users, items, times = zip(*rows, strict=True)
    exact = pa.array([Decimal(when) for when in times], pa.decimal128(38, 6))
    table = pa.table({"u": users, "i": pa.array(items, pa.uint64()), "t": exact})
    pq.write_table(table, tmp_path / "x.parquet")
    assert found(tmp_path / "x.parquet") == as_read([(u, str(i), t) for u, i, t in rows])


def test_short_floats_in_parquet(tmp_path: Path):
    """A rating is read by its digits, 4.1 and not 4.0999999; times of seconds do not fit into 32
    bits."""
    columns = {
        "u": ["a", "b"],
        "i": ["x", "y"],
        "t": [1, 2],
        "r": pa.array(np.array([4.1, 4.0], np.float32)),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert found(tmp_path / "x.parquet", min_rating=4.1) == [("a", "x", 1)]
    pq.write_table(
        pa.table({**columns, "t": pa.array(np.array([1.5e9, 1.0], np.float32))}),
        tmp_path / "x.parquet",
    )
    with pytest.raises(
        InputError,
        match=r"x\.parquet: column 't': numbers of 16,777,216 and more have lost .*; write",
    ):
        found(tmp_path / "x.parquet")
