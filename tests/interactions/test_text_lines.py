"""Lines of text files: where they end, and how far reading has come."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from small_files import found, write

from ilrec.interactions import text_lines

# A vertical tab, a form feed, separators, NEL, and Unicode's line and paragraph separators.
BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl"])
def test_only_line_feeds_end_a_line(tmp_path: Path, name: str):
    """A byte order mark is no part of the text, \\r\\n ends a line, and what else Unicode calls a
    line break does not."""
    user = f"a{BREAKS}b"
    if name == "x.jsonl":
        line = json.dumps({"u": user, "i": "x", "t": 1}, ensure_ascii=False)
        content = f"{line}\r\n" * 2
    else:
        delimiter = "\t" if name == "x.tsv" else ","
        content = f"u{delimiter}i{delimiter}t\r\n{user}{delimiter}x{delimiter}1\r\n"
    path = write(tmp_path / name, "\ufeff" + content)
    assert found(path)[0] == (user, "x", 1)


def test_progress_logs_rate_and_time_left(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(text_lines, "SECONDS_BETWEEN_PROGRESS", 0)
    monkeypatch.setattr(text_lines, "LINES_BETWEEN_CLOCKS", 1)
    lines = '{"u": "a", "i": "x", "t": 1}\n' * 3
    with caplog.at_level(logging.INFO):
        found(write(tmp_path / "x.jsonl", lines))
    assert "x.jsonl: 3 lines, " in caplog.text
    assert " a second, 0 s left" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"), [('"a"', True), ('""', True), ('"', False), ('"a', False), ("", False)]
)
def test_what_is_within_quotes(text: str, expected: bool):
    assert text_lines.is_within_quotes(text) == expected
