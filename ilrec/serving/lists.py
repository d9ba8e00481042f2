"""Files of recommendations: a record for each user, as JSON lines or Parquet.

    {"user": "ana", "items": [{"rank": 1, "id": "B11", "title": "Strings", "score": -1.71,
     "probability": 0.62}, ...]}

Parquet has the same fields: user, and items as a list of structs.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ilrec.errors import InputError
from ilrec.files.outputs import whole_file
from ilrec.interactions.cases import Cases
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.findings import Findings
from ilrec.interactions.raw_files import read_records
from ilrec.serving.catalogue import Catalogue
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
# A row group of Parquet.
RECORDS_AT_ONCE = 10_000
SCHEMA = pa.schema([("user", pa.string()), ("items", pa.list_(ITEM))])


def check_suffix(path: Path) -> None:
    """Raises InputError if the name does not tell the format."""
    if path.suffix not in (JSON_LINES, PARQUET):
        raise InputError(f"{path}: expected a name that ends in {JSON_LINES} or {PARQUET}")


def write_lists(
    path: Path, users: Iterable[str], lists: Iterable[Sequence[Recommendation]]
) -> None:
    """Write the whole file, or nothing."""
    records = map(_record, users, lists)
    with whole_file(path) as beside:
        if path.suffix == PARQUET:
            with pq.ParquetWriter(beside, SCHEMA) as writer:
                while some := list(itertools.islice(records, RECORDS_AT_ONCE)):
                    writer.write_table(pa.Table.from_pylist(some, SCHEMA))
            return
        with open(beside, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _record(user: str, ranked: Sequence[Recommendation]) -> dict[str, Any]:
    items = [dict(zip(ITEM.names, recommendation, strict=True)) for recommendation in ranked]
    return {"user": user, "items": items}


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


def read_lists(
    path: Path, dataset: InteractionDataset, cases: Cases
) -> tuple[np.ndarray, np.ndarray]:
    """The lists of all cases from a file: items int64 [C, K], best first, -1 where a list has no
    more, and scores float64 [C, K].

    The file has a record for each case, with `user` and `items`: ids, or objects with an id and
    perhaps a score. Without scores an item counts as better than the next. A user with several
    cases has as many records, oldest case first; further users are passed over. Raises InputError
    for what is missing, unknown or contradictory.
    """
    waiting: dict[str, list[int]] = {}
    for case, number in enumerate(cases.users.tolist()):
        waiting.setdefault(dataset.user_ids[number], []).append(case)
    reader = _ListReader(path, Catalogue(dataset))
    found: dict[int, tuple[list[int], list[float]]] = {}
    for line, (user, items) in read_records(path, ("user", "items"), Findings(mend="mend it")):
        mine = waiting.get(str(user))
        if mine is None:
            continue
        if not mine:
            raise InputError(f"{path}:{line}: user {user!r} has more lists than cases in the data")
        found[mine.pop(0)] = reader.ranked(line, items)
    lacking = [user for user, mine in waiting.items() if mine]
    if lacking:
        raise InputError(
            f"{path}: no list for user {lacking[0]!r} ({len(lacking)} of {len(waiting)} users lack "
            "one); expected a record for each case of the split, oldest case first"
        )
    width = max(len(numbers) for numbers, _ in found.values())
    if not width:
        raise InputError(f"{path}: all lists are empty; expected items, best first")
    items_CK = np.full((len(cases), width), -1, dtype=np.int64)
    scores_CK = np.full((len(cases), width), -np.inf)
    for case, (numbers, scores) in found.items():
        items_CK[case, : len(numbers)] = numbers
        scores_CK[case, : len(scores)] = scores
    return items_CK, scores_CK


class _ListReader:
    """One list of a file -> numbers and scores."""

    def __init__(self, path: Path, catalogue: Catalogue) -> None:
        self.path = path
        self.catalogue = catalogue

    def ranked(self, line: int, items: Any) -> tuple[list[int], list[float]]:
        if not isinstance(items, list):
            raise self._fault(line, f"items: expected a list, got {items!r:.80}")
        numbers, scores = [], []
        for place, item in enumerate(items):
            fields = item if isinstance(item, dict) else {"id": item}
            number = self.catalogue.number_of.get(str(fields.get("id")))
            if number is None:
                known = f"the catalogue of {len(self.catalogue):,} items"
                raise self._fault(line, f"item {item!r:.80} is not in {known}")
            numbers.append(number)
            score = fields.get("score", -place)
            if not isinstance(score, (int, float, Decimal)):
                raise self._fault(line, f"score: expected a number, got {score!r:.80}")
            scores.append(float(score))
        if len(set(numbers)) < len(numbers):
            raise self._fault(line, "an item is there twice; expected each once, best first")
        if not (np.isfinite(scores).all() and (np.diff(scores) <= 0).all()):
            raise self._fault(line, "expected finite scores, best first")
        return numbers, scores

    def _fault(self, line: int, reason: str) -> InputError:
        return InputError(f"{self.path}:{line}: {reason}")
