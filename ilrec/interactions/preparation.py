"""Raw interactions -> the data set that is trained on: order, duplicates, k-core, lengths, titles;
and what each step removed.

The steps, in this order: sort each user's interactions by time (what happened at the same time
stays in file order); keep the first of a user's interactions with the same item; k-core; drop users
with too few items; keep the newest items of the others.

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
# Spelled out, because Unicode's categories grow from one Python version to the next. Joiners stay:
# emoji and scripts need them.
UNSEEN = re.compile(
    "[\u00ad\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)  # soft hyphen, directions: inside words
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ud800-\udfff]")
QUANTILES = (0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Filters:
    """k_core: least interactions of a user and of an item. repeats: first or all of a user's
    interactions with one item.

    min_items, max_items: per user; max_items 0 keeps all, else the newest. Raises InputError where
        users could not be split.
    """

    k_core: int = 5
    repeats: str = "first"
    min_items: int = MIN_ITEMS_PER_USER
    max_items: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("k_core", 0),
            ("min_items", MIN_ITEMS_PER_USER),
            ("max_items", MIN_ITEMS_PER_USER),
        ):
            value = getattr(self, name)
            if value < least and (name, value) != ("max_items", 0):
                raise InputError(f"{name}: expected {least} or more, got {value}")


def prepare(
    raw: RawInteractions, name: str, filters: Filters
) -> tuple[InteractionDataset, dict[str, int]]:
    """The data set, without titles, and how many interactions each step removed. InputError where
    nothing is left."""
    users_E, items_E = raw.in_order()
    num_raw, removed = len(users_E), {}
    for step, keep in _steps(filters).items():
        kept_E = keep(users_E, items_E)
        users_E, items_E = users_E[kept_E], items_E[kept_E]
        removed[step] = len(kept_E) - len(users_E)
        logger.info(
            "%s: %s interactions removed, %s left", step, f"{removed[step]:,}", f"{len(users_E):,}"
        )
    if not len(users_E):
        listed = ", ".join(f"{step} {count:,}" for step, count in removed.items())
        raise InputError(
            f"{name}: no interaction is left of {num_raw:,} (removed by {listed}); lower --k_core or --min_items"
        )
    return _numbered(name, users_E, items_E, list(raw.user_names), list(raw.item_names)), removed


def _steps(filters: Filters) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Each step in order: users_E and items_E, ordered by user and time -> bool [E], what is
    kept."""
    steps: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "k_core": lambda users_E, items_E: k_core(users_E, items_E, filters.k_core),
        "min_items": lambda users_E, items_E: (
            np.bincount(users_E, minlength=1)[users_E] >= filters.min_items
        ),
    }
    if filters.repeats == "first":
        steps = {"repeats": _first_of_each, **steps}
    if filters.max_items:
        steps["max_items"] = lambda users_E, items_E: _newest(users_E, filters.max_items)
    return steps


def with_titles(dataset: InteractionDataset, raw_titles: Mapping[str, str]) -> InteractionDataset:
    """The same data with cleaned titles, "" for an item that has none."""
    titles = [clean_title(raw_titles.get(item, "")) for item in dataset.item_ids]
    return replace(dataset, titles=titles if any(titles) else None)


def clean_title(title: str) -> str:
    """HTML entities (also doubly escaped) resolved, tags and control characters out, one space
    between words."""
    text = TAG.sub(" ", html.unescape(html.unescape(title)))
    return " ".join(CONTROL.sub(" ", UNSEEN.sub("", text)).split())


def statistics(dataset: InteractionDataset) -> dict[str, Any]:
    """What a reader wants to know of a data set, by name."""
    lengths_U = dataset.sequences.lengths
    num_interactions = int(lengths_U.sum())
    quantiles = {
        f"items per user, {int(100 * q)}%": float(np.quantile(lengths_U, q)) for q in QUANTILES
    }
    untitled = (
        sum(not title for title in dataset.titles)
        if dataset.titles is not None
        else dataset.num_items
    )
    return {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": num_interactions,
        "density": num_interactions / (dataset.num_users * dataset.num_items),
        "items per user, least": int(lengths_U.min()),
        **quantiles,
        "items per user, most": int(lengths_U.max()),
        "items without a title": untitled,
    }


def format_statistics(values: Mapping[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {_shown(value):>14}" for name, value in values.items())


def _shown(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value


def _first_of_each(users_E: np.ndarray, items_E: np.ndarray) -> np.ndarray:
    """bool [E]: the first of each pair of user and item."""
    pairs_E = users_E.astype(np.int64) * (int(items_E.max(initial=0)) + 1) + items_E
    first = np.unique(pairs_E, return_index=True)[1]
    keep_E = np.zeros(len(users_E), dtype=bool)
    keep_E[first] = True
    return keep_E


def _newest(users_E: np.ndarray, count: int) -> np.ndarray:
    """bool [E]: the last `count` of each user; users are in order."""
    ends_U = np.append(np.flatnonzero(np.diff(users_E)) + 1, len(users_E))
    after_E = np.repeat(ends_U, np.diff(ends_U, prepend=0)) - np.arange(len(users_E))
    return after_E <= count


def _numbered(
    name: str,
    users_E: np.ndarray,
    items_E: np.ndarray,
    user_names: list[str],
    item_names: list[str],
) -> InteractionDataset:
    """Users and items that are left, numbered in the order of their names, whatever the order in
    the files."""
    kept_users, lengths_U = np.unique(users_E, return_counts=True)
    kept_items, items_E = np.unique(items_E, return_inverse=True)
    found_items = [item_names[item] for item in kept_items.tolist()]
    item_ids = ordered(found_items)
    number_of = {item: number for number, item in enumerate(item_ids)}
    numbers_I = np.array([number_of[item] for item in found_items], dtype=np.int32)
    found_users = [user_names[user] for user in kept_users.tolist()]
    user_ids = ordered(found_users)
    place_of = {user: place for place, user in enumerate(found_users)}
    rows = Ragged.from_lengths(numbers_I[items_E], lengths_U)
    places = np.array([place_of[user] for user in user_ids])
    return InteractionDataset(
        name,
        user_ids,
        item_ids,
        Ragged(rows.values, rows.starts[places], rows.ends[places]),
        None,
        len(user_names) - len(user_ids),
        "",
    )
