"""Raw files, one record at a time: JSON lines, CSV, TSV and Parquet, the first three also as .gz;
and what the library `datasets` reads (dataset_sources.py).

A file larger than memory is fine. A malformed line is reported as file:line and counted; more of
them than allowed end the import (findings.py). Tab-separated files have no quoting unless it is
asked for: a quote there belongs to the text. A CSV record may span lines because of a quote; it is
read, counted and reported.
"""

from __future__ import annotations

import ast
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ilrec.errors import InputError
from ilrec.interactions.dataset_sources import DatasetSource
from ilrec.interactions.findings import Findings
from ilrec.interactions.text_lines import (
    Progress,
    byte_lines,
    column_position,
    decoded,
    is_within_quotes,
    tab_separated,
    text_lines,
)

BATCH_ROWS = 65_536
# A message shows this many field names of a JSON object.
SHOWN_FIELDS = 12
# A number in JSON is kept to the digit as it is written.
JSON = json.JSONDecoder(parse_float=Decimal)
# From here on a float of this type does not hold every whole number. A float64 is judged value by
# value in fields.py.
WHOLE_FLOATS = {pa.float16(): 2**11, pa.float32(): 2**24}

# The number of the line (or of the row in Parquet), and the wanted fields.
Record = tuple[int, tuple[Any, ...]]
# The first line, the last line, and all fields of a row of text.
Row = tuple[int, int, list[str]]


def read_records(
    path: Path | DatasetSource,
    columns: Sequence[str],
    findings: Findings,
    optional: str = "",
    quoted_tsv: bool = False,
) -> Iterator[Record]:
    """The fields `columns` of each record, in the file's order. Progress is logged.

    optional: a column that a JSON line may lack; its value is then None.
    Raises InputError for a file that cannot be read or lacks a column.
    """
    if isinstance(path, DatasetSource):
        yield from _read_dataset(path, columns)
        return
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in READERS or (kind == "parquet" and path.suffix == ".gz"):
        raise InputError(
            f"{path}: expected a name that ends in .jsonl, .json, .csv, .tsv (each also with .gz) "
            "or .parquet"
        )
    read = READERS[kind]
    if kind == "tsv" and quoted_tsv:
        read = _read_quoted_tsv
    try:
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
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not readable ({reason}); check that it is complete and that you may read it"
        ) from None


def _read_json_lines(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    for line, content in byte_lines(path):
        if not content.strip():
            continue
        try:
            fields = _parse_line(decoded(content, line))
        # All that a broken line can raise: UnicodeDecodeError is a ValueError, Decimal refuses an
        # exponent of twenty digits, and deep nesting ends in one of the last two.
        except (ValueError, InvalidOperation, SyntaxError, RecursionError, MemoryError) as error:
            findings.bad(path, line, f"not valid JSON ({error})")
            continue
        if not isinstance(fields, dict):
            findings.bad(path, line, f"expected a JSON object, got a {type(fields).__name__}")
            continue
        missing = [name for name in columns if name not in fields and name != optional]
        if missing:
            there = ", ".join(list(fields)[:SHOWN_FIELDS])
            findings.bad(path, line, f"no field {missing[0]!r}; it has {there}")
            continue
        yield line, tuple(fields.get(name) for name in columns)


def _parse_line(text: str) -> Any:
    """JSON, or a Python literal, which Amazon's files of 2014 have instead."""
    try:
        return JSON.decode(text)
    except json.JSONDecodeError:
        if not text.startswith("{'"):
            raise
    return ast.literal_eval(text)


def _read_csv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    return _wanted_fields(path, columns, findings, _quoted_rows(path, findings, ","))


def _read_quoted_tsv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    return _wanted_fields(path, columns, findings, _quoted_rows(path, findings, "\t"))


def _read_tsv(
    path: Path, columns: Sequence[str], findings: Findings, optional: str
) -> Iterator[Record]:
    # Without quoting, a row is one line: its first line is its last.
    rows = ((line, line, fields) for line, fields in tab_separated(path))
    for line, values in _wanted_fields(path, columns, findings, rows):
        quoted = next(filter(is_within_quotes, values), None)
        if quoted is not None:
            findings.within_quotes(path, line, quoted)
        yield line, values


def _quoted_rows(path: Path, findings: Findings, delimiter: str) -> Iterator[Row]:
    """Rows whose fields may be quoted. A quoted field may hold delimiters, line breaks and doubled
    quotes."""
    texts = (text for _, text in text_lines(path))
    # Strict, because otherwise a quote that is never closed takes all lines after it into its field
    # without an error.
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


def _wanted_fields(
    path: Path, columns: Sequence[str], findings: Findings, rows: Iterator[Row]
) -> Iterator[Record]:
    """The wanted fields of each row below the header, which is the first row."""
    _, _, header = next(rows, (1, 1, None))
    if header is None:
        raise InputError(f"{path}:1: empty file; expected a header with {', '.join(columns)}")
    positions = [column_position(path, header, [name]) for name in columns]
    for first, last, row in rows:
        # With a field too many or too few, nobody knows which fields have moved.
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
    # Batches of rows, so that a file larger than memory is fine.
    # One column may be wanted twice, as when the item's column is also that of the titles.
    batches = file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns)))
    yield from _records(path, columns, batches, file.metadata.num_rows)


def _read_dataset(source: DatasetSource, columns: Sequence[str]) -> Iterator[Record]:
    # A stream tells its columns with its first batch, and never how many rows it has.
    batches = source.batches(BATCH_ROWS)
    for first in batches:
        for name in columns:
            column_position(source, first.schema.names, [name])
        yield from _records(source, columns, itertools.chain([first], batches), None)


def _records(
    path: Path | DatasetSource,
    columns: Sequence[str],
    batches: Iterable[pa.RecordBatch | pa.Table],
    num_rows: int | None,
) -> Iterator[Record]:
    """The wanted fields of each row of the batches. num_rows: for the progress, if it is known."""
    progress = Progress(path, num_rows, "rows")
    row = 0
    for batch in batches:
        lists = {name: _plain(batch.column(name), path, name).to_pylist() for name in {*columns}}
        for values in zip(*(lists[name] for name in columns), strict=True):
            row += 1
            yield row, values
        progress.log(row, row)


def _plain(
    column: pa.Array | pa.ChunkedArray, path: Path | DatasetSource, name: str
) -> pa.Array | pa.ChunkedArray:
    """The column with exact values: timestamps as whole numbers, short floats by their digits.

    A float32 of 4.1 becomes 4.1 and not 4.0999999. Raises InputError if a short float is too large
    to be exact. All other types stay as they are.
    """
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    limit = WHOLE_FLOATS.get(column.type)
    if limit is None:
        return column
    wide = column.cast(pa.float32())
    if pc.any(pc.greater_equal(pc.abs(wide), limit)).as_py():
        raise InputError(
            f"{path}: column {name!r}: numbers of {limit:,} and more have lost their last digits "
            f"in a {column.type}; write the column as int64, double or a timestamp"
        )
    return wide.cast(pa.string()).cast(pa.float64())


# By the end of a file's name.
READERS: dict[str, Callable[[Path, Sequence[str], Findings, str], Iterator[Record]]] = {
    "json": _read_json_lines,
    "jsonl": _read_json_lines,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
}
