"""Arrow files that are memory-mapped: columns of text, and rows of integers (ragged.py).

Each file is an Arrow IPC stream of one record batch. Reading one costs no memory for its content,
and all processes of a machine share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from ilrec.errors import InputError
from ilrec.interactions.ragged import Ragged

# The one column of a file that holds rows of integers alone.
ROWS = "rows"


class ArrowStrings(Sequence[str]):
    """A column of text. An entry is read from the memory-mapped file when it is asked for."""

    def __init__(self, column: pa.LargeStringArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ArrowStrings: ...

    def __getitem__(self, index: int | slice) -> str | ArrowStrings:
        if isinstance(index, slice):
            return ArrowStrings(self.column[index])
        return self.column[index].as_py()


def write_table(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def read_table(path: Path, mend: str) -> pa.RecordBatch:
    """What write_table wrote, memory-mapped. Raises InputError, which ends with `mend`, if the file
    is missing or damaged."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
    except (OSError, StopIteration, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not readable as Arrow ({reason}); {mend}") from None


def text_column(texts: Sequence[str]) -> pa.LargeStringArray:
    return texts.column if isinstance(texts, ArrowStrings) else pa.array(texts, pa.large_string())


def list_column(rows: Ragged) -> pa.LargeListArray:
    """The rows as a large_list of their own type, without what else their flat array may hold."""
    offsets = np.concatenate([[0], np.cumsum(rows.lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(rows.flat()))


def rows_of_column(column: pa.LargeListArray) -> Ragged:
    """The rows that list_column was given, as views of the memory-mapped file."""
    offsets = column.offsets.to_numpy()
    return Ragged(column.values.to_numpy(), offsets[:-1], offsets[1:])


def write_ragged(path: Path, rows: Ragged) -> None:
    write_table(path, {ROWS: list_column(rows)})


def read_ragged(path: Path, mend: str) -> Ragged:
    """What write_ragged wrote, memory-mapped. Raises InputError as read_table does."""
    return rows_of_column(read_table(path, mend)[ROWS])
