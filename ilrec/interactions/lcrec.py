"""LC-Rec JSON: NAME.inter.json {user: [item, ...]} with NAME.item.json (titles) or NAME.index.json
(semantic IDs).

Of the index only the items count here; ilrec.items.semantic_ids reads the IDs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of
from ilrec.files.reading import read_json
from ilrec.interactions.dataset import (
    InteractionDataset,
    assemble,
    optional_file,
    ordered,
)


def read_lcrec(path: Path) -> InteractionDataset:
    """Raises InputError for what is missing, malformed or contradictory in the files."""
    name = path.name.removesuffix(".inter.json")
    users = _read_object(path, "{user: [item, ...]}")
    histories = {user: _item_names(items, user, path) for user, items in users.items()}
    item_file = optional_file(path.parent, name, "item.json")
    index_file = None if item_file else optional_file(path.parent, name, "index.json")
    titles: dict[str, str] = _json_titles(item_file) if item_file else {}
    catalogue_file = item_file or index_file
    if catalogue_file is None:
        catalogue: Iterable[str] = {item for items in histories.values() for item in items}
    else:
        catalogue = titles if item_file else _read_object(catalogue_file, "{item: [token, ...]}")
    item_ids = ordered(catalogue)
    numbers = {item: number for number, item in enumerate(item_ids)}
    sequences = {}
    for user, items in histories.items():
        for item in items:
            if item not in numbers:
                raise InputError(
                    f"{catalogue_file}: item {item!r}, which user {user!r} has in {path.name}, is not in "
                    "it; expected every item: use the files of one release together"
                )
        sequences[user] = np.array([numbers[item] for item in items], dtype=np.int32)
    return assemble(
        path,
        name,
        sequences,
        item_ids,
        titles,
        fingerprint_of(filter(None, (path, catalogue_file))),
    )


def _item_names(items: Any, user: str, path: Path) -> list[str]:
    if not isinstance(items, list) or not all(
        isinstance(i, (int, str)) and not isinstance(i, bool) for i in items
    ):
        raise InputError(
            f"{path}: user {user!r}: expected a list of items (numbers or strings) in time order, "
            f"got {json.dumps(items)[:80]}"
        )
    return [str(item) for item in items]


def _json_titles(path: Path) -> dict[str, str]:
    titles = {}
    for item, fields in _read_object(path, '{item: {"title": ...}}').items():
        title = fields.get("title", "") if isinstance(fields, dict) else None
        if not isinstance(title, str):
            raise InputError(
                f'{path}: item {item!r}: expected {{"title": "..."}}, got {json.dumps(fields)[:80]}'
            )
        titles[item] = title.strip()
    return titles


def _read_object(path: Path, expected: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(content).__name__}")
    return content
