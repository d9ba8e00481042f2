"""Raw interaction files -> numbers in memory, one line at a time: JSON lines, CSV, TSV and Parquet, the first three also as .gz.

Only what is needed is held: 4 bytes for each user, 4 for each item and 8 for each time, and every name once. A file larger than
memory is fine. A malformed line is said as file:line and counted; more than allowed end the import.

Shapes: E interactions.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import logging
import math
import re
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ilrec.errors import InputError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PROGRESS = 10
LINES_BETWEEN_CLOCKS = 10_000
MAX_WARNINGS = 20
PARQUET_BATCH_ROWS = 65_536
SHOWN_CHARACTERS = 80  # of a wrong value
SURROGATES = re.compile("[\ud800-\udfff]")  # half a character, as JSON's \ud83d alone: no text file can hold it

Record = tuple[int, tuple[Any, ...]]  # line (or row) number, the wanted fields


@dataclass(frozen=True)
class Columns:
    """Names of the fields: of an interaction, and of an item in the file of titles."""

    user: str
    item: str
    time: str
    title_item: str
    title: str
    rating: str | None = None


# The releases' own field names: https://nijianmo.github.io/amazon and https://amazon-reviews-2023.github.io
PRESETS = {
    "amazon_2018": Columns("reviewerID", "asin", "unixReviewTime", "asin", "title", "overall"),
    "amazon_2023": Columns("user_id", "parent_asin", "timestamp", "parent_asin", "title", "rating"),
}


@dataclass
class BadLines:
    """How many malformed lines are skipped before one ends the import."""

    allowed: int
    found: int = 0

    def __post_init__(self) -> None:
        if self.allowed < 0:
            raise InputError(f"max_bad_lines: expected 0 or more, got {self.allowed}")

    def add(self, path: Path, line: int, reason: str) -> None:
        """Raises InputError for the first that is not allowed any more."""
        self.found += 1
        if self.found > self.allowed:
            skipped = f" ({self.allowed} before it were skipped)" if self.allowed else ""
            raise InputError(f"{path}:{line}: {reason}{skipped}; mend the line, or skip such lines with --max_bad_lines")
        if self.found <= MAX_WARNINGS:
            logger.warning("%s:%d: %s; skipped", path, line, reason)


@dataclass
class RawInteractions:
    """users_E, items_E: positions in user_names and item_names. times_E: seconds or milliseconds, as in the file."""

    user_names: dict[str, int] = field(default_factory=dict)
    item_names: dict[str, int] = field(default_factory=dict)
    users: array = field(default_factory=lambda: array("i"))
    items: array = field(default_factory=lambda: array("i"))
    times: array = field(default_factory=lambda: array("d"))
    num_below_rating: int = 0

    def add(self, user: str, item: str, when: float) -> None:
        self.users.append(self.user_names.setdefault(user, len(self.user_names)))
        self.items.append(self.item_names.setdefault(item, len(self.item_names)))
        self.times.append(when)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(users_E int32, items_E int32, times_E float64), views."""
        return np.frombuffer(self.users, np.int32), np.frombuffer(self.items, np.int32), np.frombuffer(self.times, np.float64)


def read_files(paths: Sequence[Path], columns: Columns, bad: BadLines, min_rating: float | None = None) -> RawInteractions:
    """All interactions of the files, in their order. Raises InputError for what is missing or malformed."""
    raw = RawInteractions()
    rated = min_rating is not None
    wanted = [columns.user, columns.item, columns.time, *([columns.rating] if rated and columns.rating else [])]
    for path in paths:
        for line, (user, item, when, *rating) in records(path, wanted, bad):
            try:
                parsed = _name(user, columns.user), _name(item, columns.item), _number(when, columns.time)
                below = rated and _number(rating[0], str(columns.rating)) < float(min_rating or 0)
            except ValueError as error:
                bad.add(path, line, str(error))
                continue
            if below:
                raw.num_below_rating += 1
            else:
                raw.add(*parsed)
    if not raw.users:
        below_all = f": all {raw.num_below_rating:,} are rated below {min_rating:g}, lower --min_rating" if raw.num_below_rating else ""
        raise InputError(f"{', '.join(map(str, paths))}: expected at least one interaction, found none{below_all}")
    return raw


def read_titles(path: Path, columns: Columns, wanted_items: Iterable[str], bad: BadLines) -> dict[str, str]:
    """{item: title as it stands} of the wanted items; the first title of an item counts."""
    wanted, titles = set(wanted_items), {}
    for line, (item, title) in records(path, [columns.title_item, columns.title], bad, optional=columns.title):
        try:
            name = _name(item, columns.title_item)
        except ValueError as error:
            bad.add(path, line, str(error))
            continue
        if name in wanted and name not in titles:
            titles[name] = title if isinstance(title, str) else ""
    return titles


def records(path: Path, columns: Sequence[str], bad: BadLines, optional: str = "") -> Iterator[Record]:
    """The wanted fields of each line, None for `optional` where a JSON line lacks it; progress is logged."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in READERS or (kind == "parquet" and path.suffix == ".gz"):
        raise InputError(f"{path}: expected a name that ends in .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet")
    try:
        yield from READERS[kind](path, columns, bad, optional)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory; give files of one kind, or one directory alone") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or incomplete gzip ({error}); download it again") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable ({' '.join(str(error).split())[:200]}); "
                         "check that it is complete and that you may read it") from None


def _read_json_lines(path: Path, columns: Sequence[str], bad: BadLines, optional: str) -> Iterator[Record]:
    for line, text in _lines(path):
        if not text.strip():
            continue
        try:
            content = _parse_line(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # UnicodeDecodeError is a ValueError
            bad.add(path, line, f"not valid JSON ({error})")
            continue
        if not isinstance(content, dict):
            bad.add(path, line, f"expected a JSON object, got a {type(content).__name__}")
            continue
        missing = [name for name in columns if name not in content and name != optional]
        if missing:
            bad.add(path, line, f"no field {missing[0]!r}; it has {', '.join(list(content)[:12])}")
            continue
        yield line, tuple(content.get(name) for name in columns)


def _parse_line(text: bytes) -> Any:
    """JSON, or the Python literal that Amazon's files of 2014 have in its place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if not text.startswith(b"{'"):
            raise
    return ast.literal_eval(text.decode())


def _read_csv(path: Path, columns: Sequence[str], bad: BadLines, optional: str, delimiter: str = ",") -> Iterator[Record]:
    texts = (text.decode("utf-8-sig" if line == 1 else "utf-8") for line, text in _lines(path))
    rows = csv.reader(texts, delimiter=delimiter, strict=True)  # else a quote that is never closed swallows all lines after it
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1  # where the record begins: a quoted field may hold line breaks
        try:
            row = next(rows)
        except StopIteration:
            break
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{rows.line_num + 1}: not UTF-8 ({error}); save the file as UTF-8") from None
        except csv.Error as error:
            bad.add(path, line, f"not valid CSV ({error})")
            continue
        if header is None:
            header = row
            positions = [_position(path, header, name) for name in columns]
        elif len(row) == len(header):
            yield line, tuple(row[position] for position in positions)
        elif row:
            bad.add(path, line, f"expected {len(header)} fields as in the header, got {len(row)}")
    if header is None:
        raise InputError(f"{path}:1: empty file; expected a header with {', '.join(columns)}")


def _read_tsv(path: Path, columns: Sequence[str], bad: BadLines, optional: str) -> Iterator[Record]:
    return _read_csv(path, columns, bad, optional, delimiter="\t")


def _read_parquet(path: Path, columns: Sequence[str], bad: BadLines, optional: str) -> Iterator[Record]:
    file = pq.ParquetFile(path)
    for name in columns:
        _position(path, file.schema_arrow.names, name)
    progress, row = Progress(path, file.metadata.num_rows, "rows"), 0
    for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
        fields = {name: _plain(batch.column(name)).to_pylist() for name in columns}
        for values in zip(*(fields[name] for name in columns), strict=True):
            row += 1
            yield row, values
        progress.say(row, row)


def _plain(column: pa.Array) -> pa.Array:
    """Times that Parquet has a type for, as whole numbers; all else as it is."""
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


READERS: dict[str, Callable[[Path, Sequence[str], BadLines, str], Iterator[Record]]] = {
    "json": _read_json_lines, "jsonl": _read_json_lines, "csv": _read_csv, "tsv": _read_tsv, "parquet": _read_parquet}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        progress = Progress(path, path.stat().st_size, "lines")
        stream: BinaryIO | io.BufferedReader = file
        if path.suffix == ".gz":
            stream = gzip.open(file)  # type: ignore[assignment]
        for line, text in enumerate(stream, start=1):
            yield line, text
            if line % LINES_BETWEEN_CLOCKS == 0:
                progress.say(line, file.tell())


class Progress:
    """One log line now and then: how far, how fast, how long still."""

    def __init__(self, path: Path, total: int, unit: str) -> None:
        self.path, self.total, self.unit = path, total, unit
        self.started = self.spoke = time.monotonic()

    def say(self, count: int, done: int) -> None:
        """count: lines so far. done: of `total`, bytes or rows."""
        now = time.monotonic()
        if now - self.spoke < SECONDS_BETWEEN_PROGRESS or not done:
            return
        self.spoke, seconds = now, now - self.started
        logger.info("%s: %s %s, %s a second, %.0f s left", self.path.name, f"{count:,}", self.unit, f"{count / seconds:,.0f}",
                    seconds * (self.total - done) / done)


def _position(path: Path, header: Sequence[str], name: str) -> int:
    if name not in header:
        raise InputError(f"{path}:1: expected a column {name!r}, found {', '.join(header)}; name the right one with the "
                         "option for it: --user_column, --item_column, --time_column, --rating_column, --title_item_column or "
                         "--title_column")
    return list(header).index(name)


def _name(value: Any, column: str) -> str:
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{column}: expected a name or a whole number, got {repr(value)[:SHOWN_CHARACTERS]}")
    name = str(value)
    if not name.isascii() and SURROGATES.search(name):
        raise ValueError(f"{column}: expected Unicode text, got {ascii(name)[:SHOWN_CHARACTERS]}")
    return name


def _number(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{column}: expected a number, 0 or more, got {repr(value)[:SHOWN_CHARACTERS]}")
    return number
