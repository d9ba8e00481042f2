"""Item embeddings on disk: NAME.npy, and NAME.ids.json with the id of each row's item.

The array alone does not say which item a row belongs to, and the array of another catalogue of the
same size would fit as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError


def write_embeddings(path: Path, embeddings_ID: np.ndarray, item_ids: Sequence[str]) -> None:
    """Write the ids and then the array. At no moment does an array lie beside the ids of another.

    embeddings_ID: float [items, dims]. item_ids: of each row.
    """
    path.unlink(missing_ok=True)
    # Each file is written under another name and renamed, so that a reader never sees half of it.
    beside = path.with_name(f".{path.stem}.tmp.npy")
    beside.write_text(json.dumps(list(item_ids)) + "\n", encoding="utf-8")
    os.replace(beside, ids_path(path))
    np.save(beside, embeddings_ID)
    os.replace(beside, path)


def ids_path(path: Path) -> Path:
    """The file with the ids of the rows of `path`."""
    return path.with_suffix(".ids.json")


def read_embeddings(path: Path, item_ids: Sequence[str]) -> np.ndarray:
    """Finite float32 [items, dims]: the row of each of item_ids, in their order, whatever the order
    in the file.

    Raises InputError for what is missing or malformed, and if the file's items are not these.
    """
    embeddings_RD = _read_array(path)
    row_of = _rows_of_items(ids_path(path), len(embeddings_RD))
    _require_same_items(ids_path(path), row_of, item_ids)
    rows = [row_of[item] for item in item_ids]
    embeddings_ID = embeddings_RD[rows].astype(np.float32, copy=False)

    broken_I = ~np.isfinite(embeddings_ID).all(axis=1)
    if broken_I.any():
        first = item_ids[int(broken_I.argmax())]
        raise InputError(
            f"{path}: the row of item {first!r} holds NaN or infinity "
            f"({broken_I.sum()} such rows); expected numbers"
        )
    return embeddings_ID


def _read_array(path: Path) -> np.ndarray:
    """Numbers [rows, dims]. Raises InputError if the file holds anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a .npy array: {error}") from None
    # np.load also opens an archive of arrays, which has neither shape nor dtype.
    shape = list(getattr(array, "shape", ()))
    if len(shape) != 2 or array.dtype.kind not in "fiu":
        kind = getattr(array, "dtype", type(array).__name__)
        raise InputError(f"{path}: expected numbers [items, dims], got {kind} {shape}")
    return array


def _rows_of_items(path: Path, num_rows: int) -> dict[str, int]:
    """{item: row}, from the file with the ids of the rows."""
    how = (
        f"expected a JSON list of the {num_rows} rows' item ids, in their order, "
        'as ["B01", "B02", ...]'
    )
    try:
        ids: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, so that nothing says which row is which item; {how} "
            "(`ilrec sasrec` writes it: train again if an older version did not)"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {how}") from None

    if not isinstance(ids, list):
        raise InputError(f"{path}: {how}, got a {type(ids).__name__}")
    if len(ids) != num_rows or not all(type(item) in (str, int) for item in ids):
        raise InputError(f"{path}: {how}, got a list of {len(ids)}")
    row_of: dict[str, int] = {}
    for row, item in enumerate(map(str, ids)):
        if row_of.setdefault(item, row) != row:
            raise InputError(f"{path}: item {item!r} is there twice; {how}")
    return row_of


def _require_same_items(path: Path, row_of: dict[str, int], item_ids: Sequence[str]) -> None:
    """Raises InputError, naming one item, if the rows are not those of item_ids."""
    # Rows of further items are refused too: such embeddings belong to other data.
    missing = [item for item in item_ids if item not in row_of]
    known = set(item_ids)
    unknown = [item for item in row_of if item not in known]
    if missing:
        fault = f"item {missing[0]!r} of the data has no row"
    elif unknown:
        fault = f"item {unknown[0]!r} is not in the data"
    else:
        return
    raise InputError(
        f"{path}: {len(row_of)} items, the data has {len(item_ids)}: {fault}; "
        "make the embeddings of this data's items"
    )
