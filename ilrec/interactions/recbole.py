"""RecBole atomic files: NAME.inter, filtered to its k-core, and NAME.item with titles.

Both are tab-separated and begin with a typed header (user_id:token, timestamp:float).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of
from ilrec.interactions.dataset import (
    InteractionDataset,
    assemble,
    optional_file,
    ordered,
)
from ilrec.interactions.fields import Times, name_of, number_of
from ilrec.interactions.findings import Occurrences
from ilrec.interactions.k_core import k_core
from ilrec.interactions.text_lines import column_position, is_within_quotes, tab_separated

logger = logging.getLogger(__name__)

TITLE_COLUMNS = ("title", "movie_title", "name", "item_name", "product_title", "book_title")
MEND = "name it in the header, as user_id:token"


def read_recbole(path: Path, k: int) -> InteractionDataset:
    """The k-core of an atomic file's interactions, with titles if there is NAME.item.

    Raises InputError for what is missing or malformed.
    """
    name = path.name.removesuffix(".inter")
    columns = (("user_id",), ("item_id",), ("timestamp",))
    rows = _read_columns(path, columns, (name_of, name_of, number_of))
    if not rows:
        raise InputError(
            f"{path}: no interactions; expected lines of tab-separated fields below the header"
        )

    # From names to numbers.
    user_names, item_names, stamps = zip(*rows, strict=True)
    user_ids = ordered(set(user_names))
    item_ids = ordered(set(item_names))
    users_E = _numbers(user_names, user_ids)
    items_E = _numbers(item_names, item_ids)

    # By user and time, the k-core alone. The sort is stable: what a user did at the same time stays
    # in the order of the file.
    keep_E = k_core(users_E, items_E, k)
    times = Times()
    for stamp in stamps:
        times.append(stamp)
    order = np.lexsort((*times.sort_keys(), users_E))
    order = order[keep_E[order]]
    users_E, items_E = users_E[order], items_E[order]

    # Items are numbered anew, because some of them may have gone. Users are sorted, so that each
    # one's items lie side by side, from where the user is first met.
    kept_items, items_E = np.unique(items_E, return_inverse=True)
    kept_users, first = np.unique(users_E, return_index=True)
    kept_names = [user_ids[user] for user in kept_users.tolist()]
    # Not strict: if nothing is left, np.split still returns one empty array.
    sequences = dict(zip(kept_names, np.split(items_E, first[1:]), strict=False))
    times_of = dict(zip(kept_names, np.split(times.seconds()[order], first[1:]), strict=False))

    item_file = optional_file(path.parent, name, "item")
    titles = _recbole_titles(item_file) if item_file else {}
    read_files = [path, item_file] if item_file else [path]
    return assemble(
        name=name,
        sequences=sequences,
        item_ids=[item_ids[item] for item in kept_items.tolist()],
        titles=titles,
        fingerprint=fingerprint_of(read_files, k),
        times=times_of,
    )


def _recbole_titles(path: Path) -> dict[str, str]:
    """{item: title}; empty if the file has no column of titles."""
    _, typed = next(tab_separated(path), (1, []))
    if not set(_column_names(typed)) & set(TITLE_COLUMNS):
        return {}
    return dict(_read_columns(path, (("item_id",), TITLE_COLUMNS), (name_of, _title_of)))


def _title_of(text: str, column: str) -> str:
    return text.strip()


def _column_names(typed: Sequence[str]) -> list[str]:
    """The names of a header's fields without their types: user_id of user_id:token."""
    return [field.partition(":")[0] for field in typed]


def _read_columns(
    path: Path, columns: Sequence[Sequence[str]], parsers: Sequence[Callable[[str, str], Any]]
) -> list[tuple]:
    """The named columns of an atomic file, parsed. Each column is given by its accepted names, the
    best first.

    parsers: one for each column, (text, the column's name) -> value, or ValueError.
    """
    # The first line is the header, and the loop below goes on with the second.
    lines = tab_separated(path)
    _, typed = next(lines, (1, []))
    if not typed:
        raise InputError(
            f"{path}:1: empty file; expected a header like user_id:token<TAB>item_id:token"
        )
    header = _column_names(typed)
    positions = [column_position(path, header, names, MEND) for names in columns]

    rows = []
    quoted = Occurrences()
    for line, fields in lines:
        if len(fields) != len(header):
            raise InputError(
                f"{path}:{line}: expected {len(header)} tab-separated fields as in the header, "
                f"got {len(fields)}"
            )
        row = []
        for parse, position in zip(parsers, positions, strict=True):
            try:
                row.append(parse(fields[position], header[position]))
            except ValueError as error:
                raise InputError(f"{path}:{line}: {error}") from None
        rows.append(tuple(row))
        if any(is_within_quotes(fields[position]) for position in positions):
            quoted.add(path, line)

    if quoted.count:
        logger.warning(
            "%s: lines with fields within quotes: %s; the quotes are kept, because atomic files "
            "have no quoting",
            path,
            quoted,
        )
    return rows


def _numbers(names: Sequence[str], ordered_names: Sequence[str]) -> np.ndarray:
    """int64: the place of each name in ordered_names."""
    place_of = {name: place for place, name in enumerate(ordered_names)}
    return np.fromiter((place_of[name] for name in names), dtype=np.int64, count=len(names))
