"""Raw interactions -> the data set to train on, and how many interactions each step removed.

The steps are, in this order:
1. Sort each user's interactions by time; what happened at the same time stays in file order.
2. Of a user's interactions with the same item keep the first.
3. k-core.
4. Drop the users with too few items.
5. Of each other user keep the newest items.

Shapes: E interactions, U users, I items.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.interactions.dataset import MIN_ITEMS_PER_USER, InteractionDataset, ordered
from ilrec.interactions.importers import RawInteractions
from ilrec.interactions.k_core import k_core
from ilrec.interactions.ragged import Ragged

logger = logging.getLogger(__name__)

TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
# Characters are spelled out here, because Unicode's categories grow from one Python version to the
# next. Joiners are not among them, because emoji and some scripts need them.
# Soft hyphens and marks of direction stand inside words: they are removed without a space.
UNSEEN = re.compile("[\u00ad\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ud800-\udfff]")
QUANTILES = (0.25, 0.5, 0.75, 0.95)

# (users_E, items_E), sorted by user and time -> bool [E], which interactions are kept.
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Filters:
    """Which interactions are kept. Raises InputError for a number that is too small.

    k_core: least number of interactions of a user and of an item.
    repeats: "first" or "all" of a user's interactions with one item.
    min_items: least number of items of a user. Only a split by time has a use for fewer than three.
    max_items: the newest items of a user that are kept; 0 keeps all.
    """

    k_core: int = 5
    repeats: str = "first"
    min_items: int = MIN_ITEMS_PER_USER
    max_items: int = 0

    def __post_init__(self) -> None:
        _require_at_least(0, "k_core", self.k_core)
        _require_at_least(1, "min_items", self.min_items)
        if self.max_items != 0:
            _require_at_least(MIN_ITEMS_PER_USER, "max_items", self.max_items)


def _require_at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise InputError(f"{name}: expected {least} or more, got {value}")


def prepare(
    raw: RawInteractions, name: str, filters: Filters
) -> tuple[InteractionDataset, dict[str, int]]:
    """The data set, without titles, and how many interactions each step removed.

    Raises InputError if nothing is left.
    """
    users_E, items_E, times_E = raw.in_order()
    num_raw = len(users_E)
    removed = {}
    for step, keep in _steps(filters):
        kept_E = keep(users_E, items_E)
        users_E, items_E, times_E = users_E[kept_E], items_E[kept_E], times_E[kept_E]
        removed[step] = len(kept_E) - len(users_E)
        logger.info(
            "%s: %s interactions removed, %s left", step, f"{removed[step]:,}", f"{len(users_E):,}"
        )

    if not len(users_E):
        listed = ", ".join(f"{step} {count:,}" for step, count in removed.items())
        raise InputError(
            f"{name}: no interaction is left of {num_raw:,} (removed by {listed}); "
            "lower --k_core or --min_items"
        )
    names = list(raw.user_names), list(raw.item_names)
    return _numbered(name, users_E, items_E, times_E, *names), removed


def _steps(filters: Filters) -> list[tuple[str, Step]]:
    """The names and functions of the steps, in their order."""

    def in_k_core(users_E: np.ndarray, items_E: np.ndarray) -> np.ndarray:
        return k_core(users_E, items_E, filters.k_core)

    def has_enough(users_E: np.ndarray, items_E: np.ndarray) -> np.ndarray:
        return np.bincount(users_E, minlength=1)[users_E] >= filters.min_items

    def is_newest(users_E: np.ndarray, items_E: np.ndarray) -> np.ndarray:
        return _newest(users_E, filters.max_items)

    steps: list[tuple[str, Step]] = []
    if filters.repeats == "first":
        steps.append(("repeats", _first_of_each))
    steps.append(("k_core", in_k_core))
    steps.append(("min_items", has_enough))
    if filters.max_items:
        steps.append(("max_items", is_newest))
    return steps


def _first_of_each(users_E: np.ndarray, items_E: np.ndarray) -> np.ndarray:
    """bool [E]: the first of each pair of user and item."""
    # One number for each pair; int64, because users times items is more than 32 bits hold.
    num_items = int(items_E.max(initial=0)) + 1
    pairs_E = users_E.astype(np.int64) * num_items + items_E
    first = np.unique(pairs_E, return_index=True)[1]
    keep_E = np.zeros(len(users_E), dtype=bool)
    keep_E[first] = True
    return keep_E


def _newest(users_E: np.ndarray, count: int) -> np.ndarray:
    """bool [E]: the last `count` interactions of each user. Users must be in order."""
    ends_U = np.append(np.flatnonzero(np.diff(users_E)) + 1, len(users_E))
    lengths_U = np.diff(ends_U, prepend=0)
    num_from_here_E = np.repeat(ends_U, lengths_U) - np.arange(len(users_E))
    return num_from_here_E <= count


def _numbered(
    name: str,
    users_E: np.ndarray,
    items_E: np.ndarray,
    times_E: np.ndarray,
    user_names: list[str],
    item_names: list[str],
) -> InteractionDataset:
    """The users and items that are left, numbered in the order of their names, so that their
    numbers do not depend on the order of the files."""
    # Items: from the place where a name was first met to its place in the order of names.
    kept_items, items_E = np.unique(items_E, return_inverse=True)
    met_items = [item_names[item] for item in kept_items.tolist()]
    item_ids = ordered(met_items)
    number_of = {item: number for number, item in enumerate(item_ids)}
    numbers_I = np.array([number_of[item] for item in met_items], dtype=np.int32)

    # Users: their rows are put into the order of names, and no row has to be copied for that.
    kept_users, lengths_U = np.unique(users_E, return_counts=True)
    met_users = [user_names[user] for user in kept_users.tolist()]
    user_ids = ordered(met_users)
    row_of = {user: row for row, user in enumerate(met_users)}
    rows_U = np.array([row_of[user] for user in user_ids])
    sequences = Ragged.from_lengths(numbers_I[items_E], lengths_U)[rows_U]
    return InteractionDataset(
        name=name,
        user_ids=user_ids,
        item_ids=item_ids,
        sequences=sequences,
        titles=None,
        num_dropped_users=len(user_names) - len(user_ids),
        # The fingerprint is made of the files that are written.
        fingerprint="",
        times=Ragged(times_E, sequences.starts, sequences.ends),
    )


def with_titles(dataset: InteractionDataset, raw_titles: Mapping[str, str]) -> InteractionDataset:
    """The same data with cleaned titles, "" for an item that has none."""
    titles = [clean_title(raw_titles.get(item, "")) for item in dataset.item_ids]
    return replace(dataset, titles=titles if any(titles) else None)


def clean_title(title: str) -> str:
    """A title as plain text: HTML entities resolved, tags and control characters removed, one space
    between words."""
    # Twice, because shops escape text that was already escaped: &amp;amp; is &.
    text = html.unescape(html.unescape(title))
    text = TAG.sub(" ", text)
    text = UNSEEN.sub("", text)
    text = CONTROL.sub(" ", text)
    return " ".join(text.split())


def statistics(dataset: InteractionDataset) -> dict[str, Any]:
    """The size and shape of a data set, by name."""
    lengths_U = dataset.sequences.lengths
    num_interactions = int(lengths_U.sum())
    values: dict[str, Any] = {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": num_interactions,
        "density": num_interactions / (dataset.num_users * dataset.num_items),
        "items per user, least": int(lengths_U.min()),
    }
    for quantile in QUANTILES:
        name = f"items per user, {int(100 * quantile)}%"
        values[name] = float(np.quantile(lengths_U, quantile))
    values["items per user, most"] = int(lengths_U.max())
    titles = dataset.titles if dataset.titles is not None else [""] * dataset.num_items
    values["items without a title"] = sum(not title for title in titles)
    return values


def format_statistics(values: Mapping[str, Any]) -> str:
    """One line for each value, the names and the values below one another."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {_shown(value):>14}" for name, value in values.items())


def _shown(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value
