"""LC-Rec JSON: NAME.inter.json {user: [item, ...]} with NAME.item.json (titles) or NAME.index.json
(semantic IDs).

From the index only the list of items is read here; ilrec.items.semantic_ids reads the IDs.
"""

from __future__ import annotations

import itertools
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
    """Read NAME.inter.json and the files that belong to it.

    Raises InputError for what is missing, malformed or contradictory in the files.
    """
    name = path.name.removesuffix(".inter.json")
    histories = {}
    for user, items in _read_object(path, "{user: [item, ...]}").items():
        histories[user] = _item_names(items, user, path)

    # The catalogue is what the item file lists, and it may list items that no user has. Without
    # that file the index says what the items are, and without both the histories do.
    item_file = optional_file(path.parent, name, "item.json")
    index_file = None if item_file else optional_file(path.parent, name, "index.json")
    titles: dict[str, str] = {}
    catalogue: Iterable[str]
    if item_file:
        titles = _json_titles(item_file)
        catalogue = titles
    elif index_file:
        catalogue = _read_object(index_file, "{item: [token, ...]}")
    else:
        catalogue = set(itertools.chain.from_iterable(histories.values()))

    # From names to numbers.
    catalogue_file = item_file or index_file
    item_ids = ordered(catalogue)
    numbers = {item: number for number, item in enumerate(item_ids)}
    sequences = {}
    for user, items in histories.items():
        for item in items:
            if item not in numbers:
                raise InputError(
                    f"{catalogue_file}: item {item!r}, which user {user!r} has in {path.name}, is "
                    "not in it; expected every item: use the files of one release together"
                )
        sequences[user] = np.array([numbers[item] for item in items], dtype=np.int32)
    read_files = [path, catalogue_file] if catalogue_file else [path]
    return assemble(name, sequences, item_ids, titles, fingerprint_of(read_files))


def _item_names(items: Any, user: str, path: Path) -> list[str]:
    """A user's items as text. Raises InputError if they are no list of numbers or strings."""
    if isinstance(items, list) and all(map(_is_item, items)):
        return [str(item) for item in items]
    raise InputError(
        f"{path}: user {user!r}: expected a list of items (numbers or strings) in time order, "
        f"got {json.dumps(items)[:80]}"
    )


def _is_item(item: Any) -> bool:
    """A bool is an int in Python, but no item's number."""
    return isinstance(item, (int, str)) and not isinstance(item, bool)


def _json_titles(path: Path) -> dict[str, str]:
    """{item: title}, with "" for an item without a title."""
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
    """A file with one JSON object. `expected` is how the message describes it."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(content).__name__}")
    return content
