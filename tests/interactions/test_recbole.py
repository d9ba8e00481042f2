"""RecBole atomic files: order, titles, and a message for each way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_files import INTER_HEADER, write_inter

from ilrec.errors import InputError
from ilrec.interactions.reading import read_interactions

TITLES = """\
item_id:token\tmovie_title:token_seq\tclass:token_seq
10\tTen\tx
20\tTwenty\ty
40\tForty\tz
30\tDreißig\tw
"""


def test_recbole_time_order_ties_and_core(tmp_path: Path):
    """User 1 has item 30 at time 1, and then 20 and 10, both at time 2, in file order. Item 40 was
    seen once and is not in the 2-core."""
    rows = [
        ("1", "20", 2),
        ("2", "10", 5),
        ("1", "40", 3),
        ("1", "10", 2.0),
        ("2", "30", 4),
        ("2", "20", 6),
        ("1", "30", 1),
    ]
    write_inter(tmp_path, rows)
    (tmp_path / "tiny.item").write_text(TITLES, encoding="utf-8")
    dataset = read_interactions(tmp_path, k_core=2)
    assert dataset.name == "tiny"
    assert dataset.user_ids == ["1", "2"]
    assert dataset.item_ids == ["10", "20", "30"]
    assert [sequence.tolist() for sequence in dataset.sequences] == [[2, 1, 0], [2, 0, 1]]
    assert dataset.titles == ["Ten", "Twenty", "Dreißig"]
    assert read_interactions(tmp_path, k_core=0).item_ids == ["10", "20", "30", "40"]


def test_recbole_times(tmp_path: Path):
    """In seconds, in the order of the items, and those of the k-core alone."""
    rows = [("1", "20", 30.7), ("1", "10", 10), ("2", "10", 5), ("2", "20", 6), ("2", "30", 7)]
    rows += [("1", "40", 20), ("2", "40", 8)]
    write_inter(tmp_path, rows)
    dataset = read_interactions(tmp_path, k_core=2)
    assert dataset.times is not None
    assert [row.tolist() for row in dataset.times] == [[10, 20, 30], [5, 6, 8]]


def test_recbole_item_file_without_titles(tmp_path: Path):
    write_inter(tmp_path, [("1", str(item), item) for item in range(3)])
    (tmp_path / "tiny.item").write_text("item_id:token\tyear:float\n0\t1999\n", encoding="utf-8")
    assert read_interactions(tmp_path, 0).titles is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1\t2\t5\n", r"tiny.inter:2: expected 4 tab-separated fields as in the header, got 3"),
        (
            "1\t2\t5\t7\n1\t2\t5\tsoon\n",
            r"tiny.inter:3: timestamp: expected a number, got 'soon'",
        ),
        ("1\t2\t5\tnan\n", r"tiny.inter:2: timestamp: expected a number"),
        ("1\t\t5\t7\n", r"tiny.inter:2: item_id: expected a name or a whole number, got ''"),
        (
            "1\t2\t5\t1.5e+18\n",
            r"tiny.inter:2: timestamp: '1.5e\+18' has lost its last digits in a float",
        ),
        ("", r"tiny.inter: no interactions"),
        ("1\t2\t5\t1\n" * 2, r"no user with at least 3 items is left"),
        ("1\t0\t5\t1\n1\t1\t5\t1\n1\t2\t5\t1\n", r"no user .* lower k_core"),
    ],
)
def test_malformed_lines(tmp_path: Path, lines: str, message: str):
    (tmp_path / "tiny.inter").write_text(INTER_HEADER + lines, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, k_core=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user_id:token\titem_id:token\n1\t2\n",
            r"tiny.inter:1: expected a column 'timestamp', found user_id, item_id; name it in",
        ),
        (
            "user_id:token\titem_id:token\titem_id:token\ttimestamp:float\n",
            r"tiny.inter:1: column 'item_id' is there twice",
        ),
        (
            INTER_HEADER.replace("\n", "\r") + "1\t2\t5\t1\r",
            r"tiny.inter:1: lines end in a carriage return alone",
        ),
        ("", r"tiny.inter:1: empty file"),
    ],
)
def test_malformed_headers(tmp_path: Path, text: str, message: str):
    (tmp_path / "tiny.inter").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, k_core=2)


def test_not_utf8(tmp_path: Path):
    (tmp_path / "tiny.inter").write_bytes(INTER_HEADER.encode() + b"1\t\xe9\t5\t1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_interactions(tmp_path, 0)


def test_times_differ_in_their_last_digit(tmp_path: Path):
    """Nanoseconds and fractions of them, which are one number as float64. The file has them in
    reverse order."""
    stamps = ["1700000000123456789.5", "1700000000123456789", "1700000000123456788", "-1", "-1.25"]
    write_inter(tmp_path, [("1", str(item), stamp) for item, stamp in enumerate(stamps)])
    sequences = read_interactions(tmp_path, 0).sequences
    assert [sequence.tolist() for sequence in sequences] == [[4, 3, 2, 1, 0]]


def test_quotes_are_characters_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A quote that opens swallows nothing. A field within quotes is kept and counted. Unicode's
    line breaks end no line."""
    titles = ['"Open', 'Close"', '"Both"', "next\u2028line\x0c\x85end"]
    write_inter(tmp_path, [("1", str(item), item) for item in range(4)])
    lines = [f"{item}\t{title}\n" for item, title in enumerate(titles)]
    text = "\ufeffitem_id:token\ttitle:token_seq\n" + "".join(lines)
    (tmp_path / "tiny.item").write_text(text, encoding="utf-8", newline="")
    assert read_interactions(tmp_path, 0).titles == titles
    expected = "lines with fields within quotes: 1, first at tiny.item:4; the quotes are kept"
    assert expected in caplog.text
