"""Interaction files -> users' item sequences in time order, with leave-one-out splits (method.md, Task).

Two kinds of data directory are read. LC-Rec JSON: NAME.inter.json {user: [item, ...]} with NAME.item.json (titles) or
NAME.index.json (semantic IDs; here only its items count). RecBole atomic files: NAME.inter with a typed, tab-separated
header, filtered to its k-core, and NAME.item (titles).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.config import read_json, write_text
from ilrec.errors import InputError

logger = logging.getLogger(__name__)

# One item to train on, one for validation, one for the test.
MIN_ITEMS_PER_USER = 3
TITLE_COLUMNS = ("title", "movie_title", "name", "item_name", "product_title", "book_title")


@dataclass(frozen=True)
class InteractionDataset:
    """Who interacted with what. Users and items are numbered in the order of user_ids and item_ids.

    sequences: per user int64 item numbers, oldest first, at least MIN_ITEMS_PER_USER.
    titles: one per item ("" where the file has none), or None where no item has one.
    num_dropped_users: users left out because they have too few items for the three splits.
    """

    name: str
    user_ids: list[str]
    item_ids: list[str]
    sequences: list[np.ndarray]
    titles: list[str] | None
    num_dropped_users: int

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def training_sequences(self) -> list[np.ndarray]:
        """Every user's items but the last two."""
        return [sequence[:-2] for sequence in self.sequences]

    def evaluation(self, split: str) -> tuple[list[np.ndarray], np.ndarray]:
        """(histories, int64 targets [users]): the second last item for "valid", the last one for "test".

        The test history includes the validation item. Raises ValueError on another split.
        """
        if split not in ("valid", "test"):
            raise ValueError(f"split: expected valid or test, got {split!r}")
        position = -2 if split == "valid" else -1
        targets = np.array([sequence[position] for sequence in self.sequences], dtype=np.int64)
        return [sequence[:position] for sequence in self.sequences], targets


def read_interactions(directory: str | Path, k_core: int) -> InteractionDataset:
    """Read a data directory; `k_core` applies to RecBole files only, because LC-Rec's are published filtered.

    Raises InputError where the directory holds neither kind or both, and for what is missing or malformed in the files.
    """
    directory = Path(directory)
    lcrec, recbole = sorted(directory.glob("*.inter.json")), sorted(directory.glob("*.inter"))
    if len(lcrec) + len(recbole) != 1:
        found = ", ".join(path.name for path in lcrec + recbole) or "neither"
        raise InputError(f"{directory}: expected one interaction file, *.inter.json (LC-Rec) or *.inter (RecBole), "
                         f"found {found}; point data at a directory with exactly one")
    return _read_lcrec(lcrec[0]) if lcrec else _read_recbole(recbole[0], k_core)


def write_lcrec(dataset: InteractionDataset, directory: str | Path) -> None:
    """Write NAME.inter.json and NAME.item.json, each beside and renamed; read_interactions reads them back."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    users = {user: [dataset.item_ids[item] for item in sequence.tolist()]
             for user, sequence in zip(dataset.user_ids, dataset.sequences, strict=True)}
    titles = dataset.titles or [""] * dataset.num_items
    items = {item: {"title": title} if title else {} for item, title in zip(dataset.item_ids, titles, strict=True)}
    write_text(directory / f"{dataset.name}.item.json", json.dumps(items, ensure_ascii=False) + "\n")
    write_text(directory / f"{dataset.name}.inter.json", json.dumps(users, ensure_ascii=False) + "\n")


def k_core(users_E: np.ndarray, items_E: np.ndarray, k: int) -> np.ndarray:
    """bool [E]: the interactions left when users and items with fewer than k are removed until none is.

    users_E, items_E: int64 numbers >= 0 of the user and the item of each interaction.
    """
    keep_E = np.ones(len(users_E), dtype=bool)
    while True:
        enough_E = keep_E.copy()
        for side_E in (users_E, items_E):
            enough_E &= np.bincount(side_E[keep_E], minlength=side_E.max(initial=-1) + 1)[side_E] >= k
        if enough_E.sum() == keep_E.sum():
            return keep_E
        keep_E = enough_E


def _read_lcrec(path: Path) -> InteractionDataset:
    name = path.name.removesuffix(".inter.json")
    users = _read_object(path, "{user: [item, ...]}")
    histories = {user: _item_names(items, user, path) for user, items in users.items()}
    item_file = _optional_file(path.parent, name, "item.json")
    index_file = None if item_file else _optional_file(path.parent, name, "index.json")
    titles: dict[str, str] = _json_titles(item_file) if item_file else {}
    catalogue_file = item_file or index_file
    if catalogue_file is None:
        catalogue: Iterable[str] = {item for items in histories.values() for item in items}
    else:
        catalogue = titles if item_file else _read_object(catalogue_file, "{item: [token, ...]}")
    item_ids = _ordered(catalogue)
    numbers = {item: number for number, item in enumerate(item_ids)}
    sequences = {}
    for user, items in histories.items():
        for item in items:
            if item not in numbers:
                raise InputError(f"{catalogue_file}: item {item!r}, which user {user!r} has in {path.name}, is not in "
                                 "it; expected every item: use the files of one release together")
        sequences[user] = np.array([numbers[item] for item in items], dtype=np.int64)
    return _assemble(path, name, sequences, item_ids, titles)


def _item_names(items: Any, user: str, path: Path) -> list[str]:
    if not isinstance(items, list) or not all(isinstance(i, (int, str)) and not isinstance(i, bool) for i in items):
        raise InputError(f"{path}: user {user!r}: expected a list of items (numbers or strings) in time order, "
                         f"got {json.dumps(items)[:80]}")
    return [str(item) for item in items]


def _json_titles(path: Path) -> dict[str, str]:
    titles = {}
    for item, fields in _read_object(path, '{item: {"title": ...}}').items():
        title = fields.get("title", "") if isinstance(fields, dict) else None
        if not isinstance(title, str):
            raise InputError(f'{path}: item {item!r}: expected {{"title": "..."}}, got {json.dumps(fields)[:80]}')
        titles[item] = title.strip()
    return titles


def _read_object(path: Path, expected: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(content).__name__}")
    return content


def _optional_file(directory: Path, name: str, suffix: str) -> Path | None:
    """NAME.suffix, else the only *.suffix; None where there is none."""
    if (directory / f"{name}.{suffix}").exists():
        return directory / f"{name}.{suffix}"
    found = sorted(directory.glob(f"*.{suffix}"))
    if len(found) > 1:
        raise InputError(f"{directory}: expected {name}.{suffix} or a single *.{suffix}, found "
                         f"{', '.join(p.name for p in found)}; keep one, or rename the right one {name}.{suffix}")
    return found[0] if found else None


def _read_recbole(path: Path, k: int) -> InteractionDataset:
    name = path.name.removesuffix(".inter")
    rows = _read_columns(path, (("user_id",), ("item_id",), ("timestamp",)), (_name, _name, _timestamp))
    if not rows:
        raise InputError(f"{path}: no interactions; expected lines of tab-separated fields below the header")
    user_names, item_names, timestamps = zip(*rows, strict=True)
    user_ids, item_ids = _ordered(set(user_names)), _ordered(set(item_names))
    users_E, items_E = _numbers(user_names, user_ids), _numbers(item_names, item_ids)
    keep_E = k_core(users_E, items_E, k)
    # Stable: what happened at the same time stays in file order.
    order = np.lexsort((np.array(timestamps), users_E))
    order = order[keep_E[order]]
    users_E, items_E = users_E[order], items_E[order]
    kept_items, items_E = np.unique(items_E, return_inverse=True)
    kept_users, first = np.unique(users_E, return_index=True)
    per_user = np.split(items_E.astype(np.int64), first[1:])  # one empty array where nothing is left, hence not strict
    sequences = {user_ids[u]: sequence for u, sequence in zip(kept_users.tolist(), per_user, strict=False)}
    item_file = _optional_file(path.parent, name, "item")
    titles = _recbole_titles(item_file) if item_file else {}
    return _assemble(path, name, sequences, [item_ids[i] for i in kept_items.tolist()], titles)


def _recbole_titles(path: Path) -> dict[str, str]:
    """{item: title}; empty where the file has no column of titles."""
    columns = [field.partition(":")[0] for field in next(_lines(path))[1]]
    if not set(columns) & set(TITLE_COLUMNS):
        return {}
    return dict(_read_columns(path, (("item_id",), TITLE_COLUMNS), (_name, str.strip)))


def _read_columns(path: Path, columns: Sequence[Sequence[str]], parsers: Sequence[Callable[[str], Any]]) -> list[tuple]:
    """The named columns of an atomic file, parsed. Each column is given as its accepted names, the best first."""
    lines = _lines(path)
    header = [field.partition(":")[0] for field in next(lines)[1]]
    positions = [_column(path, header, names) for names in columns]
    rows = []
    for line, fields in lines:
        if len(fields) != len(header):
            raise InputError(f"{path}:{line}: expected {len(header)} tab-separated fields as in the header, "
                             f"got {len(fields)}")
        try:
            rows.append(tuple(parse(fields[p]) for parse, p in zip(parsers, positions, strict=True)))
        except ValueError as error:
            raise InputError(f"{path}:{line}: {error}") from None
    return rows


def _column(path: Path, header: list[str], names: Sequence[str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise InputError(f"{path}:1: expected a column {' or '.join(names)} in the header (as user_id:token), "
                     f"got {', '.join(header)}")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """An atomic file as (line number, fields) pairs, the header first; blank lines are skipped."""
    line = 0
    with open(path, encoding="utf-8-sig") as file:
        try:
            for line, text in enumerate(file, start=1):
                if text.strip() or line == 1:
                    yield line, text.rstrip("\n").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 after line {line} ({error.reason}); save the file as UTF-8") from None
    if line == 0:
        raise InputError(f"{path}:1: empty file; expected a header like user_id:token<TAB>item_id:token")


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a user and an item, got an empty field")
    return text.strip()


def _timestamp(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"timestamp: expected a number, got {text!r}")
    return value


def _ordered(names: Iterable[str]) -> list[str]:
    """Numeric where all are whole numbers, else by text: the same numbering whatever the order in the file."""
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _numbers(names: Sequence[str], ordered: Sequence[str]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(ordered)}
    return np.fromiter((numbers[name] for name in names), dtype=np.int64, count=len(names))


def _assemble(path: Path, name: str, sequences: dict[str, np.ndarray], item_ids: list[str],
              titles: dict[str, str]) -> InteractionDataset:
    """Drop the users who have too few items, and say so."""
    user_ids = _ordered(user for user, sequence in sequences.items() if len(sequence) >= MIN_ITEMS_PER_USER)
    num_dropped = len(sequences) - len(user_ids)
    if not user_ids:
        raise InputError(f"{path}: no user with at least {MIN_ITEMS_PER_USER} items is left; "
                         "use more data or, for RecBole files, a lower k_core")
    if num_dropped:
        logger.warning("%s: %d of %d users left out: fewer than %d items", path, num_dropped, len(sequences),
                       MIN_ITEMS_PER_USER)
    listed = [titles.get(item, "") for item in item_ids]
    return InteractionDataset(name, user_ids, item_ids, [sequences[user] for user in user_ids],
                              listed if any(listed) else None, num_dropped)
