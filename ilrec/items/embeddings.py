"""Item embeddings on disk: NAME.npy, and NAME.ids.json with the item of each row.

An array alone does not say whose rows these are, and another catalogue of the same size would fit
as well.
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
    """Ids, then the array, each beside and renamed; no instant has an array with the ids of
    another."""
    path.unlink(missing_ok=True)
    beside = path.with_name(f".{path.stem}.tmp.npy")
    beside.write_text(json.dumps(list(item_ids)) + "\n", encoding="utf-8")
    os.replace(beside, ids_path(path))
    np.save(beside, embeddings_ID)
    os.replace(beside, path)


def ids_path(path: Path) -> Path:
    """Where the ids of the rows of `path` are."""
    return path.with_suffix(".ids.json")


def read_embeddings(path: Path, item_ids: Sequence[str]) -> np.ndarray:
    """Finite floats [items, dims], a row for each of item_ids, in their order, whatever the order
    in the file.

    Raises InputError for what is missing or malformed, and where the file's items are not these.
    """
    try:
        embeddings_RD = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a .npy array: {error}") from None
    shape = list(getattr(embeddings_RD, "shape", ()))
    if len(shape) != 2 or embeddings_RD.dtype.kind not in "fiu":
        kind = getattr(embeddings_RD, "dtype", type(embeddings_RD).__name__)
        raise InputError(f"{path}: expected numbers [items, dims], got {kind} {shape}")
    rows = _rows_of_items(ids_path(path), shape[0])
    missing = [item for item in item_ids if item not in rows]
    if missing or len(rows) > len(item_ids):
        known = set(item_ids)
        first = missing[0] if missing else next(item for item in rows if item not in known)
        fault = (
            f"item {first!r} of the data has no row"
            if missing
            else f"item {first!r} is not in the data"
        )
        raise InputError(
            f"{ids_path(path)}: {len(rows)} items, the data has {len(item_ids)}: {fault}; "
            "make the embeddings of this data's items"
        )
    embeddings_ID = embeddings_RD[[rows[item] for item in item_ids]].astype(np.float32, copy=False)
    broken_I = ~np.isfinite(embeddings_ID).all(axis=1)
    if broken_I.any():
        raise InputError(
            f"{path}: the row of item {item_ids[int(broken_I.argmax())]!r} holds NaN or infinity "
            f"({broken_I.sum()} such rows); expected numbers"
        )
    return embeddings_ID


def _rows_of_items(path: Path, num_rows: int) -> dict[str, int]:
    """{item: row}, from the list of ids."""
    how = f'expected a JSON list of the {num_rows} rows\' item ids, in their order, as ["B01", "B02", ...]'
    try:
        ids: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, so that nothing says which row is which item; {how} (tools/"
            "train_sasrec.py writes it: train again where an older version did)"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {how}") from None
    if (
        not isinstance(ids, list)
        or len(ids) != num_rows
        or not all(type(item) in (str, int) for item in ids)
    ):
        got = f"a list of {len(ids)}" if isinstance(ids, list) else f"a {type(ids).__name__}"
        raise InputError(f"{path}: {how}, got {got}")
    rows: dict[str, int] = {}
    for row, item in enumerate(map(str, ids)):
        if rows.setdefault(item, row) != row:
            raise InputError(f"{path}: item {item!r} is there twice; {how}")
    return rows
