"""RecBole atomic files: NAME.inter with a typed, tab-separated header, filtered to its k-core, and
NAME.item (titles)."""

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
from ilrec.interactions.k_core import k_core
from ilrec.interactions.records import Seen, column_position, is_within_quotes, tab_separated

logger = logging.getLogger(__name__)

TITLE_COLUMNS = ("title", "movie_title", "name", "item_name", "product_title", "book_title")
MEND = "name it in the header, as user_id:token"


def read_recbole(path: Path, k: int) -> InteractionDataset:
    """The k-core of an atomic file's interactions. Raises InputError for what is missing or
    malformed."""
    name = path.name.removesuffix(".inter")
    rows = _read_columns(
        path, (("user_id",), ("item_id",), ("timestamp",)), (name_of, name_of, number_of)
    )
    if not rows:
        raise InputError(
            f"{path}: no interactions; expected lines of tab-separated fields below the header"
        )
    user_names, item_names, stamps = zip(*rows, strict=True)
    user_ids, item_ids = ordered(set(user_names)), ordered(set(item_names))
    users_E, items_E = _numbers(user_names, user_ids), _numbers(item_names, item_ids)
    keep_E = k_core(users_E, items_E, k)
    times = Times()
    for stamp in stamps:
        times.append(stamp)
    # Stable: what happened at the same time stays in file order.
    order = np.lexsort((*times.sort_keys(), users_E))
    order = order[keep_E[order]]
    users_E, items_E = users_E[order], items_E[order]
    kept_items, items_E = np.unique(items_E, return_inverse=True)
    kept_users, first = np.unique(users_E, return_index=True)
    per_user = np.split(
        items_E.astype(np.int64), first[1:]
    )  # one empty array where nothing is left, hence not strict
    sequences = {
        user_ids[u]: sequence for u, sequence in zip(kept_users.tolist(), per_user, strict=False)
    }
    item_file = optional_file(path.parent, name, "item")
    titles = _recbole_titles(item_file) if item_file else {}
    return assemble(
        path,
        name,
        sequences,
        [item_ids[i] for i in kept_items.tolist()],
        titles,
        fingerprint_of(filter(None, (path, item_file)), k),
    )


def _recbole_titles(path: Path) -> dict[str, str]:
    """{item: title}; empty where the file has no column of titles."""
    _, header = next(tab_separated(path), (1, []))
    if not {field.partition(":")[0] for field in header} & set(TITLE_COLUMNS):
        return {}
    parsers = (name_of, lambda text, column: text.strip())
    return dict(_read_columns(path, (("item_id",), TITLE_COLUMNS), parsers))


def _read_columns(
    path: Path, columns: Sequence[Sequence[str]], parsers: Sequence[Callable[[str, str], Any]]
) -> list[tuple]:
    """The named columns of an atomic file, parsed. Each column is given as its accepted names, the
    best first.

    parsers: (text, column's name) -> value, or ValueError.
    """
    lines = tab_separated(path)
    _, typed = next(lines, (1, []))
    if not typed:
        raise InputError(
            f"{path}:1: empty file; expected a header like user_id:token<TAB>item_id:token"
        )
    header = [field.partition(":")[0] for field in typed]
    positions = [column_position(path, header, names, MEND) for names in columns]
    rows, quoted = [], Seen()
    for line, fields in lines:
        if len(fields) != len(header):
            raise InputError(
                f"{path}:{line}: expected {len(header)} tab-separated fields as in the header, "
                f"got {len(fields)}"
            )
        try:
            rows.append(
                tuple(
                    parse(fields[p], header[p]) for parse, p in zip(parsers, positions, strict=True)
                )
            )
        except ValueError as error:
            raise InputError(f"{path}:{line}: {error}") from None
        if any(is_within_quotes(fields[p]) for p in positions):
            quoted.add(path, line)
    if quoted.count:
        logger.warning(
            "%s: lines with fields within quotes: %s; the quotes are kept: atomic files have no quoting",
            path,
            quoted,
        )
    return rows


def _numbers(names: Sequence[str], ordered: Sequence[str]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(ordered)}
    return np.fromiter((numbers[name] for name in names), dtype=np.int64, count=len(names))
