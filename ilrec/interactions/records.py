"""Files of records, one at a time: JSON lines, CSV, TSV and Parquet, the first three also as .gz.

A file larger than memory is fine. A malformed line is said as file:line and counted; more than
allowed end the import. Tab-separated files have no quoting unless asked for: a quote there belongs
to the text. A CSV record that a quote makes span lines is read, counted and said.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ilrec.errors import InputError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PROGRESS = 10
LINES_BETWEEN_CLOCKS = 10_000
MAX_WARNINGS = 20
PARQUET_BATCH_ROWS = 65_536
SHOWN_CHARACTERS = 300  # of a header
MEND = (
    "name the right one with the option for it: --user_column, --item_column, --time_column, --rating_column, "
    "--title_item_column or --title_column"
)
JSON = json.JSONDecoder(parse_float=Decimal)  # a number as it is written
# From here on a float of this type does not hold every whole number. fields.py judges a float64,
# value by value.
WHOLE_FLOATS = {pa.float16(): 2**11, pa.float32(): 2**24}

Record = tuple[int, tuple[Any, ...]]  # line (or row) number, the wanted fields
Row = tuple[int, int, list[str]]  # first line, last line, all fields


@dataclass
class Seen:
    """How often, and where first."""

    count: int = 0
    first: str = ""

    def add(self, path: Path, line: int) -> bool:
        """Whether it is the first."""
        self.count += 1
        self.first = self.first or f"{path.name}:{line}"
        return self.count == 1

    def __str__(self) -> str:
        return f"{self.count:,}, first at {self.first}"


@dataclass
class Findings:
    """What the report says of the lines. max_bad_lines: malformed ones that are skipped before one
    ends the import."""

    max_bad_lines: int = 0
    num_bad: int = 0
    spanning: Seen = field(default_factory=Seen)
    quoted: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        if self.max_bad_lines < 0:
            raise InputError(f"max_bad_lines: expected 0 or more, got {self.max_bad_lines}")

    def bad(self, path: Path, line: int, reason: str, last: int | None = None) -> None:
        """A malformed record, of the lines up to `last`. InputError for the first that is not
        allowed any more."""
        before, end = self.num_bad, last or line
        self.num_bad += end - line + 1
        spans = f" (from here to line {end}, because of a quote)" if end > line else ""
        if self.num_bad > self.max_bad_lines:
            skipped = f" ({before} before it were skipped)" if before else ""
            raise InputError(
                f"{path}:{line}: {reason}{spans}{skipped}; "
                "mend the line, or skip such lines with --max_bad_lines"
            )
        if before < MAX_WARNINGS:
            logger.warning("%s:%d: %s%s; skipped", path, line, reason, spans)

    def spans(self, path: Path, first: int, last: int) -> None:
        """A quoted field holds line breaks."""
        if self.spanning.add(path, first):
            logger.warning(
                "%s:%d: one record, because of a quote, up to line %d; is that meant? "
                "All such records are counted",
                path,
                first,
                last,
            )

    def within_quotes(self, path: Path, line: int, text: str) -> None:
        """A field of a file without quoting begins and ends with a quote."""
        if self.quoted.add(path, line):
            logger.warning(
                "%s:%d: the quotes around %.60s are kept: tab-separated files have no quoting; where the "
                "program that wrote it quotes (as pandas does), import with --quoted_tsv. All such lines "
                "are counted",
                path,
                line,
                text,
            )

    def report(self) -> dict[str, Any]:
        """What was found, by name."""
        found: dict[str, Any] = {"malformed lines skipped": self.num_bad} if self.num_bad else {}
        for name, seen in (
            ("records that span lines", self.spanning),
            ("lines with fields within quotes", self.quoted),
        ):
            if seen.count:
                found[name] = str(seen)
        return found


def records(
    path: Path,
    columns: Sequence[str],
    findings: Findings,
    optional: str = "",
    quoted_tsv: bool = False,
) -> Iterator[Record]:
    """The wanted fields of each line, None for `optional` where a JSON line lacks it; progress is
    logged."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in READERS or (kind == "parquet" and path.suffix == ".gz"):
        raise InputError(
            f"{path}: expected a name that ends in .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"
        )
    try:
        read = _read_quoted_tsv if kind == "tsv" and quoted_tsv else READERS[kind]
        yield from read(path, columns, findings, optional)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a directory; give files of one kind, or one directory alone"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path}: damaged or incomplete gzip ({error}); download it again"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable ({' '.join(str(error).split())[:200]}); "
            "check that it is complete and that you may read it"
        ) from None


def _read_json_lines(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    for line, text in _lines(path):
        if not text.strip():
            continue
        try:
            content = _parse_line(text.decode("utf-8-sig" if line == 1 else "utf-8"))
        # UnicodeDecodeError is a ValueError; an exponent of twenty digits is no number for Decimal.
        except (ValueError, InvalidOperation, SyntaxError, RecursionError, MemoryError) as error:
            findings.bad(path, line, f"not valid JSON ({error})")
            continue
        if not isinstance(content, dict):
            findings.bad(path, line, f"expected a JSON object, got a {type(content).__name__}")
            continue
        missing = [name for name in columns if name not in content and name != optional]
        if missing:
            findings.bad(
                path, line, f"no field {missing[0]!r}; it has {', '.join(list(content)[:12])}"
            )
            continue
        yield line, tuple(content.get(name) for name in columns)


def _parse_line(text: str) -> Any:
    """JSON, or the Python literal that Amazon's files of 2014 have in its place."""
    try:
        return JSON.decode(text)
    except json.JSONDecodeError:
        if not text.startswith("{'"):
            raise
    return ast.literal_eval(text)


def _read_csv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    return _fields(path, columns, findings, _quoted_rows(path, findings, ","))


def _read_quoted_tsv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    return _fields(path, columns, findings, _quoted_rows(path, findings, "\t"))


def _read_tsv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    rows = ((line, line, fields) for line, fields in tab_separated(path))
    for line, values in _fields(path, columns, findings, rows):
        quoted = next(filter(is_within_quotes, values), None)
        if quoted is not None:
            findings.within_quotes(path, line, quoted)
        yield line, values


def is_within_quotes(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank. A quote is a character like any
    other."""
    for line, text in _text_lines(path):
        text = text.rstrip("\r\n")
        if text:
            yield line, text.split("\t")


def _quoted_rows(path: Path, findings: Findings, delimiter: str) -> Iterator[Row]:
    """Rows of which a field may be quoted, and then hold delimiters, line breaks and doubled
    quotes."""
    texts = (text for _, text in _text_lines(path))
    # Strict: else a quote that is never closed takes all lines after it, without an error.
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            findings.bad(path, first, f"not valid CSV ({error})", rows.line_num)
            continue
        if row:
            yield first, rows.line_num, row


def _fields(
    path: Path, columns: Sequence[str], findings: Findings, rows: Iterator[Row]
) -> Iterator[Record]:
    """The wanted fields of each row below the header."""
    _, _, header = next(rows, (1, 1, None))
    if header is None:
        raise InputError(f"{path}:1: empty file; expected a header with {', '.join(columns)}")
    positions = [column_position(path, header, [name]) for name in columns]
    for first, last, row in rows:
        if len(row) != len(header):
            reason = f"expected {len(header)} fields as in the header, got {len(row)}"
            findings.bad(path, first, reason, last)
            continue
        if last > first:
            findings.spans(path, first, last)
        yield first, tuple(row[position] for position in positions)


def _read_parquet(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    file = pq.ParquetFile(path)
    for name in columns:
        column_position(path, file.schema_arrow.names, [name])
    progress, row = Progress(path, file.metadata.num_rows, "rows"), 0
    for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
        fields = {name: _plain(batch.column(name), path, name).to_pylist() for name in columns}
        for values in zip(*(fields[name] for name in columns), strict=True):
            row += 1
            yield row, values
        progress.say(row, row)


def _plain(column: pa.Array, path: Path, name: str) -> pa.Array:
    """Times of Parquet's own type as whole numbers; short floats by their digits, 4.1 and not
    4.0999999; all else as it is."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    limit = WHOLE_FLOATS.get(column.type)
    if limit is None:
        return column
    wide = column.cast(pa.float32())
    if pc.any(pc.greater_equal(pc.abs(wide), limit)).as_py():
        raise InputError(
            f"{path}: column {name!r}: numbers of {limit:,} and more have lost their last digits in a "
            f"{column.type}; write the column as int64, double or a timestamp"
        )
    return wide.cast(pa.string()).cast(pa.float64())


READERS: dict[str, Callable[[Path, Sequence[str], Findings, str], Iterator[Record]]] = {
    "json": _read_json_lines,
    "jsonl": _read_json_lines,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}


def column_position(
    path: Path, header: Sequence[str], names: Sequence[str], mend: str = MEND
) -> int:
    """Of the first of `names`, the best first, that the header has. InputError where it has none,
    or one twice."""
    found = next((name for name in names if name in header), None)
    shown = ", ".join(header)[:SHOWN_CHARACTERS]
    if found is None:
        mend = "import with --quoted_tsv" if f'"{names[0]}"' in header else mend
        raise InputError(
            f"{path}:1: expected a column {' or '.join(map(repr, names))}, found {shown}; {mend}"
        )
    if list(header).count(found) > 1:
        raise InputError(
            f"{path}:1: column {found!r} is there twice, among {shown}; rename one of them"
        )
    return list(header).index(found)


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text with its end). Only \\n and \\r\\n end a line, whatever else Unicode calls
    a line break."""
    for line, content in _lines(path):
        try:
            text = content.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{line}: not UTF-8 ({error}); save the file as UTF-8"
            ) from None
        if line == 1 and "\r" in text.rstrip("\r\n"):
            raise InputError(
                f"{path}:1: lines end in a carriage return alone; save the file with line feeds (\\n)"
            )
        yield line, text


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
        logger.info(
            "%s: %s %s, %s a second, %.0f s left",
            self.path.name,
            f"{count:,}",
            self.unit,
            f"{count / seconds:,.0f}",
            seconds * (self.total - done) / done,
        )
