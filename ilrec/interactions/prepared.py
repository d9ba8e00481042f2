"""A prepared data directory: what tools/prepare_data.py writes and every rank memory-maps, whatever
its size.

    users.arrow     user_id: large_string, items: large_list<int32>, item numbers, oldest first
    items.arrow     item_id: large_string, title: large_string, "" where there is none; row r is
    item number r dataset.json    format, name, fingerprint, counts, and how it was made

The .arrow files are Arrow IPC streams of one record batch, which `datasets.Dataset.from_file` opens
as well.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from ilrec.config.settings import KINDS
from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of
from ilrec.files.outputs import check_new, write_text
from ilrec.files.reading import read_json
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged

USERS, ITEMS, MANIFEST = "users.arrow", "items.arrow", "dataset.json"
FORMAT = 1
# What of the manifest is read.
FACTS = {"name": str, "fingerprint": str, "num_dropped_users": int}
AGAIN = "make the directory again with tools/prepare_data.py"


class ArrowStrings(Sequence[str]):
    """A column of text, read from the memory-mapped file when asked for."""

    def __init__(self, column: pa.LargeStringArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ArrowStrings: ...

    def __getitem__(self, index: int | slice) -> str | ArrowStrings:
        return (
            ArrowStrings(self.column[index])
            if isinstance(index, slice)
            else self.column[index].as_py()
        )


def write_prepared(
    dataset: InteractionDataset, directory: str | Path, about: dict[str, Any]
) -> None:
    """Write beside and rename. about: how the data was made, for dataset.json.

    Raises InputError where `directory` exists and is not empty.
    """
    with new_directory(Path(directory)) as beside:
        items = pa.LargeListArray.from_arrays(*_list_arrays(dataset.sequences))
        _write_table(beside / USERS, {"user_id": _strings(dataset.user_ids), "items": items})
        titles = dataset.titles if dataset.titles is not None else [""] * dataset.num_items
        _write_table(
            beside / ITEMS, {"item_id": _strings(dataset.item_ids), "title": _strings(titles)}
        )
        manifest = {
            "format": FORMAT,
            "name": dataset.name,
            "fingerprint": fingerprint_of((beside / USERS, beside / ITEMS)),
            "num_users": dataset.num_users,
            "num_items": dataset.num_items,
            "num_interactions": int(dataset.sequences.lengths.sum()),
            "num_dropped_users": dataset.num_dropped_users,
            "about": about,
        }
        write_text(beside / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill, beside `directory`; it becomes that one when the block ends well, and
    goes when it does not.

    Raises InputError as check_new does.
    """
    check_new(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent)
    )
    try:
        beside.chmod(0o755)  # mkdtemp's own is for one user only
        yield beside
        beside.replace(directory)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_prepared(directory: str | Path) -> InteractionDataset:
    """The data that write_prepared wrote, memory-mapped. Raises InputError where it is incomplete
    or damaged."""
    directory = Path(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{directory / MANIFEST}: expected format {FORMAT}; {AGAIN}")
    for fact, kind in FACTS.items():
        if type(manifest.get(fact)) is not kind:
            raise InputError(
                f"{directory / MANIFEST}: {fact}: expected {KINDS[kind]}, got {manifest.get(fact)!r:.80}; "
                f"{AGAIN}"
            )
    users, items = _read_table(directory / USERS), _read_table(directory / ITEMS)
    if fingerprint_of((directory / USERS, directory / ITEMS)) != manifest["fingerprint"]:
        raise InputError(
            f"{directory}: {USERS} and {ITEMS} are not those that {MANIFEST} was written with; {AGAIN}"
        )
    offsets = users["items"].offsets.to_numpy()
    titles = ArrowStrings(items["title"])
    return InteractionDataset(
        name=manifest["name"],
        user_ids=ArrowStrings(users["user_id"]),
        item_ids=ArrowStrings(items["item_id"]),
        sequences=Ragged(users["items"].values.to_numpy(), offsets[:-1], offsets[1:]),
        titles=titles if any(titles) else None,
        num_dropped_users=manifest["num_dropped_users"],
        fingerprint=manifest["fingerprint"],
    )


def write_ragged(path: Path, rows: Ragged) -> None:
    _write_table(path, {"rows": pa.LargeListArray.from_arrays(*_list_arrays(rows))})


def read_ragged(path: Path) -> Ragged:
    """What write_ragged wrote, memory-mapped."""
    rows = _read_table(path)["rows"]
    offsets = rows.offsets.to_numpy()
    return Ragged(rows.values.to_numpy(), offsets[:-1], offsets[1:])


def _strings(texts: Sequence[str]) -> pa.LargeStringArray:
    return texts.column if isinstance(texts, ArrowStrings) else pa.array(texts, pa.large_string())


def _list_arrays(rows: Ragged) -> tuple[pa.Array, pa.Array]:
    """Offsets and values of the rows alone, whatever else their flat array holds."""
    values = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    return pa.array(np.concatenate([[0], np.cumsum(rows.lengths)]), pa.int64()), pa.array(
        values, pa.int32()
    )


def _write_table(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read_table(path: Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
    except (OSError, StopIteration, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable as Arrow ({' '.join(str(error).split())[:200]}); {AGAIN}"
        ) from None
