"""RecBole atomic files: order, k-core, titles, and a message for each way in which one can be
wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.interactions.k_core import k_core
from ilrec.interactions.reading import read_interactions

INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write_inter(
    directory: Path, rows: list[tuple[str, str, object]], header: str = INTER_HEADER
) -> Path:
    lines = "".join(f"{user}\t{item}\t5\t{time}\n" for user, item, time in rows)
    (directory / "tiny.inter").write_text(header + lines, encoding="utf-8")
    return directory / "tiny.inter"


def test_k_core_by_hand():
    """k = 2. Item 9 has one interaction and goes; user 3 then has one left and goes; item 7 then
    has one, user 2's.

    User 2 keeps items 5 and 6, and 5 and 6 keep users 1 and 2: the core.
    """
    users = np.array([1, 1, 2, 2, 2, 3, 3])
    items = np.array([5, 6, 5, 6, 7, 7, 9])
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False, False, False]
    assert k_core(users, items, 1).all()
    assert not k_core(users, items, 4).any()


def test_recbole_time_order_ties_and_core(tmp_path: Path):
    """User 1 by time: 30, at 1, then 20 and 10, both at 2, in file order. Item 40, seen once, is
    not in the 2-core."""
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
    (tmp_path / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tTen\tx\n20\tTwenty\ty\n40\tForty\tz\n30\tDreißig\tw\n",
        encoding="utf-8",
    )
    dataset = read_interactions(tmp_path, k_core=2)
    assert (dataset.name, dataset.user_ids, dataset.item_ids) == (
        "tiny",
        ["1", "2"],
        ["10", "20", "30"],
    )
    assert [s.tolist() for s in dataset.sequences] == [[2, 1, 0], [2, 0, 1]]
    assert dataset.titles == ["Ten", "Twenty", "Dreißig"]
    assert read_interactions(tmp_path, k_core=0).item_ids == ["10", "20", "30", "40"]


def test_recbole_item_file_without_titles(tmp_path: Path):
    write_inter(tmp_path, [("1", str(item), item) for item in range(3)])
    (tmp_path / "tiny.item").write_text("item_id:token\tyear:float\n0\t1999\n", encoding="utf-8")
    assert read_interactions(tmp_path, 0).titles is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            INTER_HEADER + "1\t2\t5\n",
            r"tiny.inter:2: expected 4 tab-separated fields as in the header, got 3",
        ),
        (
            INTER_HEADER + "1\t2\t5\t7\n1\t2\t5\tsoon\n",
            r"tiny.inter:3: timestamp: expected a number, got 'soon'",
        ),
        (INTER_HEADER + "1\t2\t5\tnan\n", r"tiny.inter:2: timestamp: expected a number"),
        (
            INTER_HEADER + "1\t\t5\t7\n",
            r"tiny.inter:2: item_id: expected a name or a whole number, got ''",
        ),
        (
            "user_id:token\titem_id:token\n1\t2\n",
            r"tiny.inter:1: expected a column 'timestamp', found user_id, item_id; name it in",
        ),
        (
            "user_id:token\titem_id:token\titem_id:token\ttimestamp:float\n",
            r"tiny.inter:1: column 'item_id' is there twice",
        ),
        (
            INTER_HEADER + "1\t2\t5\t1.5e+18\n",
            r"tiny.inter:2: timestamp: '1.5e\+18' has lost its last digits in a float",
        ),
        (
            INTER_HEADER.replace("\n", "\r") + "1\t2\t5\t1\r",
            r"tiny.inter:1: lines end in a carriage return alone",
        ),
        (INTER_HEADER, r"tiny.inter: no interactions"),
        ("", r"tiny.inter:1: empty file"),
        (INTER_HEADER + "1\t2\t5\t1\n" * 2, r"tiny.inter: no user with at least 3 items is left"),
        (
            INTER_HEADER + "".join(f"1\t{i}\t5\t1\n" for i in range(3)),
            r"tiny.inter: no user .* lower k_core",
        ),
    ],
)
def test_malformed_recbole(tmp_path: Path, text: str, message: str):
    (tmp_path / "tiny.inter").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, k_core=2)


def test_not_utf8(tmp_path: Path):
    (tmp_path / "tiny.inter").write_bytes(INTER_HEADER.encode() + b"1\t\xe9\t5\t1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_interactions(tmp_path, 0)


def test_times_differ_in_their_last_digit(tmp_path: Path):
    """Nanoseconds, and fractions of them, of which a float64 makes one number; the file has them
    backwards."""
    stamps = ["1700000000123456789.5", "1700000000123456789", "1700000000123456788", "-1", "-1.25"]
    write_inter(tmp_path, [("1", str(item), stamp) for item, stamp in enumerate(stamps)])
    assert [s.tolist() for s in read_interactions(tmp_path, 0).sequences] == [[4, 3, 2, 1, 0]]


def test_quotes_are_characters_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """One that opens swallows nothing; what looks quoted is kept and counted. Unicode's line breaks
    break no line."""
    titles = ['"Open', 'Close"', '"Both"', "next\u2028line\x0c\x85end"]
    write_inter(tmp_path, [("1", str(item), item) for item in range(4)])
    lines = "".join(f"{item}\t{title}\n" for item, title in enumerate(titles))
    (tmp_path / "tiny.item").write_text(
        "\ufeffitem_id:token\ttitle:token_seq\n" + lines, encoding="utf-8", newline=""
    )
    assert read_interactions(tmp_path, 0).titles == titles
    assert (
        "lines with fields within quotes: 1, first at tiny.item:4; the quotes are kept"
        in caplog.text
    )
