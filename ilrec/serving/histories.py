"""Whose recommendations are made: the users of the data, some of them, or histories from a file.

Histories from a file are one record a user (JSON lines, Parquet, CSV or TSV), or one row an item:

    {"user": "ana", "items": ["B07", "B02"]}
    user,items                     ids separated by spaces
    ana,B07 B02
    user,item,time                 rows of a user together; sorted by time if there is one
    ana,B07,1700000100
    ana,B02,1700000300

Shapes: H histories.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ilrec.errors import InputError
from ilrec.interactions.arrow_files import (
    ArrowStrings,
    list_column,
    read_table,
    rows_of_column,
    text_column,
    write_table,
)
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.fields import name_of, number_of
from ilrec.interactions.findings import Findings
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.raw_files import read_records
from ilrec.interactions.text_lines import text_lines
from ilrec.serving.catalogue import Catalogue

logger = logging.getLogger(__name__)

LIST_COLUMNS, ROW_COLUMNS, TIME = ("user", "items"), ("user", "item"), "time"
EXPECTED = "expected columns user and items, or user and item and perhaps time"


@dataclass(frozen=True)
class Histories:
    """users: [H], ids. rows: [H], numbers of the catalogue's items, oldest first."""

    users: Sequence[str]
    rows: Ragged

    def __len__(self) -> int:
        return len(self.users)

    def write(self, path: Path) -> None:
        """Write an Arrow file, which all processes of a machine can share."""
        write_table(path, {"user": text_column(self.users), "items": list_column(self.rows)})

    @classmethod
    def read(cls, path: Path) -> Histories:
        """What `write` wrote, memory-mapped."""
        table = read_table(path, "remove it, and it is made again")
        return cls(ArrowStrings(table["user"]), rows_of_column(table["items"]))


def of_split(dataset: InteractionDataset, split: str) -> Histories:
    """all: the whole sequence of every user. valid, test: the history of each case."""
    if split == "all":
        return Histories(dataset.user_ids, dataset.sequences)
    cases = dataset.evaluation(split)
    names = text_column(dataset.user_ids).take(pa.array(cases.users))
    return Histories(ArrowStrings(names), cases.histories)


def of_users(dataset: InteractionDataset, path: Path, unknown: str) -> Histories:
    """The whole sequences of the users that a file names, one id on each line, in its order."""
    names = read_ids(path)
    found = pc.index_in(pa.array(names, pa.large_string()), text_column(dataset.user_ids))
    is_known = np.asarray(found.is_valid())
    if not is_known.all():
        first = names[int(np.argmin(is_known))]
        fault = f"{path}: {int((~is_known).sum())} of {len(names)} users are not in the data"
        if unknown == "error":
            raise InputError(
                f"{fault}, first {first!r}; correct the ids, or give --unknown skip; histories of "
                "new users are read with --histories"
            )
        logger.warning("%s, first %r; skipped", fault, first)
    numbers = found.drop_null().to_numpy().astype(np.int64)
    known = [name for name, is_kept in zip(names, is_known.tolist(), strict=True) if is_kept]
    return _checked(Histories(known, dataset.sequences[numbers]), path)


def read_ids(path: Path) -> list[str]:
    """The ids in a text file, one on each line, without blank lines. Raises InputError if it
    cannot be read or has none."""
    try:
        ids = [text.strip() for _, text in text_lines(path)]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}; expected one id on each line") from None
    ids = [name for name in ids if name]
    if not ids:
        raise InputError(f"{path}: no ids in it; expected one on each line")
    return ids


def read_histories(path: Path, catalogue: Catalogue, unknown: str) -> Histories:
    """The histories of a file. Raises InputError, with the line, for what is malformed, for a user
    that is there twice, and with unknown: error for items that are not in the catalogue and empty
    histories."""
    reader = _Reader(path, catalogue, unknown)
    columns = _columns(path)
    if "items" in columns or "item" not in columns:
        reader.read_lists()
    else:
        reader.read_rows(has_times=TIME in columns)
    return _checked(reader.histories(), path)


def _checked(histories: Histories, path: Path) -> Histories:
    if not len(histories):
        raise InputError(f"{path}: no users in it; {EXPECTED}")
    counts = pc.value_counts(text_column(histories.users))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise InputError(
            f"{path}: user {repeated[0]['values'].as_py()!r} is there more than once; give each "
            "user one record, or all rows of a user one after another"
        )
    return histories


def _columns(path: Path) -> Sequence[str]:
    """The columns of a file, as its header has them."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        if kind == "parquet":
            columns = pq.read_schema(path).names
        elif kind in ("csv", "tsv"):
            _, header = next(text_lines(path), (1, ""))
            columns = header.strip().split("\t" if kind == "tsv" else ",")
            columns = [name.strip('"') for name in columns]
        else:
            return LIST_COLUMNS
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException):
        # The reader of records tells what is wrong with the file.
        return LIST_COLUMNS
    if "user" not in columns or not {"item", "items"} & set(columns):
        raise InputError(f"{path}: {EXPECTED}, found {', '.join(columns) or 'none'}")
    return columns


class _Reader:
    """Collects histories as flat arrays: a file may have ten million users."""

    def __init__(self, path: Path, catalogue: Catalogue, unknown: str) -> None:
        self.path = path
        self.catalogue = catalogue
        self.unknown = unknown
        self.users: list[str] = []
        self.items = array("i")
        self.lengths = array("q")
        self.num_skipped = 0

    def read_lists(self) -> None:
        """One record for each user."""
        for line, (user, items) in self._records(LIST_COLUMNS):
            if isinstance(items, str):
                items = items.split()
            if not isinstance(items, list):
                raise self._fault(line, f"items: expected a list of item ids, got {items!r:.80}")
            self._add(line, self._name(line, user, "user"), items)

    def read_rows(self, has_times: bool) -> None:
        """One row for each item. The rows of a user follow one another."""
        first, current = 0, None
        dated: list[tuple[Any, Any]] = []
        columns = (*ROW_COLUMNS, TIME) if has_times else ROW_COLUMNS
        for line, (user, item, *time) in self._records(columns):
            name = self._name(line, user, "user")
            if name != current:
                self._add_rows(first, current, dated)
                first, current, dated = line, name, []
            dated.append((self._time(line, time[0]) if has_times else 0, item))
        self._add_rows(first, current, dated)

    def histories(self) -> Histories:
        lengths = np.array(self.lengths, dtype=np.int64)
        if self.num_skipped:
            logger.warning(
                "%s: %s items are not in the catalogue and are skipped; %s of %s users have none "
                "left and get an empty list",
                self.path,
                f"{self.num_skipped:,}",
                f"{int((lengths == 0).sum()):,}",
                f"{len(lengths):,}",
            )
        return Histories(self.users, Ragged.from_lengths(np.array(self.items, np.int32), lengths))

    def _records(self, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        return read_records(self.path, columns, Findings(mend="mend the line"))

    def _add_rows(self, line: int, user: str | None, dated: list[tuple[Any, Any]]) -> None:
        if user is not None:
            # Stable: items of one time stay in the file's order.
            dated.sort(key=lambda pair: pair[0])
            self._add(line, user, [item for _, item in dated])

    def _add(self, line: int, user: str, items: list[Any]) -> None:
        names = [self._name(line, item, "item") for item in items]
        numbers = self.catalogue.numbers(names, f"{self.path}:{line}", self.unknown)
        if not len(numbers) and self.unknown == "error":
            raise self._fault(
                line,
                f"user {user!r} has no items, and the model has learned to go on from at least "
                "one; remove the user, or give --unknown skip for an empty list",
            )
        self.num_skipped += len(names) - len(numbers)
        self.users.append(user)
        self.items.extend(numbers.tolist())
        self.lengths.append(len(numbers))

    def _name(self, line: int, value: Any, column: str) -> str:
        try:
            return name_of(value, column)
        except ValueError as error:
            raise self._fault(line, str(error)) from None

    def _time(self, line: int, value: Any) -> Any:
        try:
            return number_of(value, TIME)
        except ValueError as error:
            raise self._fault(line, str(error)) from None

    def _fault(self, line: int, reason: str) -> InputError:
        return InputError(f"{self.path}:{line}: {reason}")
