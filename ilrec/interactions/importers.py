"""Raw interaction files -> numbers in memory: who (user), what (item), when.

Only what is needed is held: 4 bytes for each user, 4 for each item and 8 for each time (16 if the
times have fractions), and every name once. raw_files.py reads the files, fields.py their fields.

Shapes: E interactions.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.interactions.dataset_sources import DatasetSource
from ilrec.interactions.fields import SHOWN_CHARACTERS, Times, name_of, number_of
from ilrec.interactions.findings import Findings
from ilrec.interactions.raw_files import read_records


@dataclass(frozen=True)
class Columns:
    """Names of the fields of an interaction, and of an item in the file of titles."""

    user: str
    item: str
    time: str
    title_item: str
    title: str
    rating: str | None = None


# The field names of the releases themselves: https://nijianmo.github.io/amazon and
# https://amazon-reviews-2023.github.io
PRESETS = {
    "amazon_2018": Columns("reviewerID", "asin", "unixReviewTime", "asin", "title", "overall"),
    "amazon_2023": Columns("user_id", "parent_asin", "timestamp", "parent_asin", "title", "rating"),
}


@dataclass
class RawInteractions:
    """All interactions in the order of the files.

    users, items: E positions in user_names and item_names. times: exact, in the unit of the file.
    """

    user_names: dict[str, int] = field(default_factory=dict)
    item_names: dict[str, int] = field(default_factory=dict)
    users: array = field(default_factory=lambda: array("i"))
    items: array = field(default_factory=lambda: array("i"))
    times: Times = field(default_factory=Times)
    num_below_rating: int = 0

    def add(self, user: str, item: str, when: int | Decimal) -> None:
        self.users.append(self.user_names.setdefault(user, len(self.user_names)))
        self.items.append(self.item_names.setdefault(item, len(self.item_names)))
        self.times.append(when)

    def in_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(users_E int32, items_E int32, times_E int64 in whole seconds), sorted by user and then
        by time.

        The sort is stable: what a user did at the same time stays in the order of the file.
        """
        users_E = np.frombuffer(self.users, np.int32)
        items_E = np.frombuffer(self.items, np.int32)
        order = np.lexsort((*self.times.sort_keys(), users_E))
        return users_E[order], items_E[order], self.times.seconds()[order]


def read_files(
    paths: Sequence[Path | DatasetSource],
    columns: Columns,
    findings: Findings,
    min_rating: float | None = None,
    quoted_tsv: bool = False,
) -> RawInteractions:
    """All interactions of the files, in their order.

    min_rating: interactions that are rated lower are counted and left out. Raises InputError for
    what is missing or malformed.
    """
    wanted = [columns.user, columns.item, columns.time]
    if min_rating is not None and columns.rating:
        wanted.append(columns.rating)

    # An interaction with one bad field counts as a bad line, and nothing of it is added.
    raw = RawInteractions()
    for path in paths:
        for line, values in read_records(path, wanted, findings, quoted_tsv=quoted_tsv):
            try:
                user = name_of(values[0], columns.user)
                item = name_of(values[1], columns.item)
                when = _time(values[2], columns.time)
                is_below = False
                if min_rating is not None:
                    is_below = _rating(values[3], str(columns.rating)) < min_rating
            except ValueError as error:
                findings.bad(path, line, str(error))
                continue
            if is_below:
                raw.num_below_rating += 1
            else:
                raw.add(user, item, when)

    # If the least rating has removed everything, the message says so.
    if not raw.users:
        why = ""
        if raw.num_below_rating:
            why = (
                f": all {raw.num_below_rating:,} are rated below {min_rating:g}, lower --min_rating"
            )
        listed = ", ".join(map(str, paths))
        raise InputError(f"{listed}: expected at least one interaction, found none{why}")
    return raw


def read_titles(
    path: Path,
    columns: Columns,
    wanted_items: Iterable[str],
    findings: Findings,
    quoted_tsv: bool = False,
) -> dict[str, str]:
    """{item: title as it is written} of the wanted items. The first title of an item counts."""
    # Only these titles are held, because a shop's catalogue may be much larger than the data.
    wanted = set(wanted_items)
    fields = [columns.title_item, columns.title]
    titles: dict[str, str] = {}
    for line, (item, title) in read_records(path, fields, findings, columns.title, quoted_tsv):
        try:
            name = name_of(item, columns.title_item)
        except ValueError as error:
            findings.bad(path, line, str(error))
            continue
        if name in wanted and name not in titles:
            titles[name] = title if isinstance(title, str) else ""
    return titles


def _time(value: Any, column: str) -> int | Decimal:
    number = number_of(value, column)
    if number < 0:
        raise ValueError(f"{column}: expected a number, 0 or more, got {number}")
    return number


def _rating(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        shown = repr(value)[:SHOWN_CHARACTERS]
        raise ValueError(f"{column}: expected a number, 0 or more, got {shown}")
    return number
