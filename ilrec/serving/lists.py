"""Files of recommendations: a record for each user, as JSON lines or Parquet.

    {"user": "ana", "items": [{"rank": 1, "id": "B11", "title": "Strings", "score": -1.71,
     "probability": 0.62}, ...]}

Parquet has the same fields: user, and items as a list of structs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ilrec.errors import InputError
from ilrec.files.outputs import whole_file
from ilrec.serving.recommender import Recommendation

JSON_LINES, PARQUET = ".jsonl", ".parquet"
ITEM = pa.struct(
    [
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("score", pa.float64()),
        ("probability", pa.float64()),
    ]
)
SCHEMA = pa.schema([("user", pa.string()), ("items", pa.list_(ITEM))])


def check_suffix(path: Path) -> None:
    """Raises InputError if the name does not tell the format."""
    if path.suffix not in (JSON_LINES, PARQUET):
        raise InputError(f"{path}: expected a name that ends in {JSON_LINES} or {PARQUET}")


def write_lists(
    path: Path, users: Sequence[str], lists: Sequence[Sequence[Recommendation]]
) -> None:
    """Write the whole file, or nothing."""
    records = []
    for user, ranked in zip(users, lists, strict=True):
        items = [dict(zip(ITEM.names, recommendation, strict=True)) for recommendation in ranked]
        records.append({"user": user, "items": items})
    with whole_file(path) as beside:
        if path.suffix == PARQUET:
            pq.write_table(pa.Table.from_pylist(records, SCHEMA), beside)
            return
        with open(beside, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def merge_lists(parts: Sequence[Path], path: Path) -> None:
    """One file of several, in their order: all of it, or nothing."""
    with whole_file(path) as beside:
        if path.suffix == PARQUET:
            with pq.ParquetWriter(beside, SCHEMA) as writer:
                for part in parts:
                    writer.write_table(pq.read_table(part))
            return
        with open(beside, "wb") as file:
            for part in parts:
                with open(part, "rb") as source:
                    shutil.copyfileobj(source, file)
