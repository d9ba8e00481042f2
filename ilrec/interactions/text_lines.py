"""The lines of a text file of any size, plain or .gz, and the columns of its header.

Used by the readers of raw files (raw_files.py) and of RecBole's atomic files (recbole.py).
"""

from __future__ import annotations

import gzip
import io
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ilrec.errors import InputError
from ilrec.interactions.dataset_sources import DatasetSource

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PROGRESS = 10
# The clock is read only once in so many lines, because reading it costs more than a short line.
LINES_BETWEEN_CLOCKS = 10_000
# A message shows this many characters of a header.
SHOWN_CHARACTERS = 300
# How to mend a wrong column name in an import.
MEND = (
    "name the right one with the option for it: --user_column, --item_column, --time_column, "
    "--rating_column, --title_item_column or --title_column"
)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text with its end) of each line of a UTF-8 file.

    Only \\n and \\r\\n end a line, whatever else Unicode calls a line break. Raises InputError if
    the file is not UTF-8 or its lines end in \\r alone.
    """
    for line, content in byte_lines(path):
        try:
            text = decoded(content, line)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{line}: not UTF-8 ({error}); save the file as UTF-8"
            ) from None
        # A file with \r alone would be one long line, read as a header without any data.
        if line == 1 and "\r" in text.rstrip("\r\n"):
            raise InputError(
                f"{path}:1: lines end in a carriage return alone; "
                "save the file with line feeds (\\n)"
            )
        yield line, text


def decoded(content: bytes, line: int) -> str:
    """The text of a line; the first one may begin with a byte order mark."""
    return content.decode("utf-8-sig" if line == 1 else "utf-8")


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes with their end) of each line. Progress is logged."""
    with open(path, "rb") as file:
        progress = Progress(path, path.stat().st_size, "lines")
        stream: BinaryIO | io.BufferedReader = file
        if path.suffix == ".gz":
            stream = gzip.open(file)  # type: ignore[assignment]
        for line, content in enumerate(stream, start=1):
            yield line, content
            if line % LINES_BETWEEN_CLOCKS == 0:
                # The place in the compressed file, because only its size is known beforehand.
                progress.log(line, file.tell())


def tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank.

    There is no quoting: a quote is a character like any other. With quoting, a title that begins
    with a quote would swallow all lines up to the next one.
    """
    for line, text in text_lines(path):
        text = text.rstrip("\r\n")
        if text:
            yield line, text.split("\t")


def is_within_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def column_position(
    path: Path | DatasetSource, header: Sequence[str], names: Sequence[str], mend: str = MEND
) -> int:
    """The position of the first of `names` that the header has. The names are given best first.

    Raises InputError if the header has none of them, or has that one twice. mend: what the message
    tells the user to do if there is none.
    """
    found = next((name for name in names if name in header), None)
    shown = ", ".join(header)[:SHOWN_CHARACTERS]
    if found is None:
        is_quoted = f'"{names[0]}"' in header
        expected = " or ".join(map(repr, names))
        raise InputError(
            f"{path}:1: expected a column {expected}, found {shown}; "
            f"{'import with --quoted_tsv' if is_quoted else mend}"
        )
    if list(header).count(found) > 1:
        raise InputError(
            f"{path}:1: column {found!r} is there twice, among {shown}; rename one of them"
        )
    return list(header).index(found)


class Progress:
    """Logs now and then how far reading has come, how fast it is, and how long it will take."""

    def __init__(self, path: Path | DatasetSource, total: int | None, unit: str) -> None:
        """total: size of the whole work, in what log() gets as `done`; None if nobody knows it.
        unit: what is counted."""
        self.path = path
        self.total = total
        self.unit = unit
        self.started = time.monotonic()
        self.last_logged = self.started

    def log(self, count: int, done: int) -> None:
        """count: lines or rows so far. done: how much of `total` that is, in bytes or rows."""
        now = time.monotonic()
        if now - self.last_logged < SECONDS_BETWEEN_PROGRESS or not done:
            return
        self.last_logged = now
        seconds = now - self.started
        left = f", {seconds * (self.total - done) / done:.0f} s left" if self.total else ""
        logger.info(
            "%s: %s %s, %s a second%s",
            self.path.name,
            f"{count:,}",
            self.unit,
            f"{count / seconds:,.0f}",
            left,
        )
