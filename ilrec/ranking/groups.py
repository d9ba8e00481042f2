"""Groups of users and of items, for metrics that a mean over all would hide.

Shapes: U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Users are cut into so many groups, of about equal size.
NUM_HISTORY_GROUPS = 4
# Head: the most popular items that have 20 % of all interactions. Tail: the least popular ones that
# have 20 % (Abdollahpouri et al., RecSys 2020: The Connection Between Popularity Bias, Calibration,
# and Fairness in Recommendation).
HEAD_SHARE, TAIL_SHARE = 0.2, 0.2
POPULARITY_GROUPS = ("head", "middle", "tail", "cold")


@dataclass(frozen=True)
class Groups:
    """names: of the groups. numbers: int64, the group of each user or item."""

    names: tuple[str, ...]
    numbers: np.ndarray


def interaction_counts(sequences: Sequence[Any], num_items: int) -> np.ndarray:
    """How often each item was chosen: int64 [I]."""
    chosen = np.concatenate([np.empty(0, dtype=np.int64), *sequences])
    return np.bincount(chosen.astype(np.int64), minlength=num_items)


def history_groups(lengths_U: np.ndarray) -> Groups:
    """Users by the length of their training history, cut at the quartiles of all users.

    Users of equal length stay together, so that there may be fewer than four groups. Those without
    any training item are a group of their own. A name gives the lengths: "0", "3", "4 to 7".
    """
    trained = lengths_U[lengths_U > 0]
    shares = np.arange(1, NUM_HISTORY_GROUPS) / NUM_HISTORY_GROUPS
    quartiles = np.quantile(trained, shares, method="lower") if len(trained) else []
    # A group's lengths end at one edge, which belongs to it.
    edges = np.unique([0, *quartiles])
    places_U = np.searchsorted(edges, lengths_U, side="left")
    used, numbers = np.unique(places_U, return_inverse=True)
    names = []
    for place in used:
        inside = lengths_U[places_U == place]
        low, high = inside.min(), inside.max()
        names.append(f"{low}" if low == high else f"{low} to {high}")
    return Groups(tuple(names), numbers)


def popularity_groups(counts_I: np.ndarray) -> Groups:
    """Items by their interactions in training: head, middle, tail, and cold (none at all).

    The items are taken from the most popular one on, and where two are equal, in their order. Head
    are those before which less than 20 % of all interactions lie; tail are those before which at
    least 80 % lie.
    """
    order = np.argsort(-counts_I, kind="stable")
    sorted_counts = counts_I[order]
    share_before = (np.cumsum(sorted_counts) - sorted_counts) / max(1, sorted_counts.sum())
    numbers = np.empty(len(counts_I), dtype=np.int64)
    # 0: head, 1: middle, 2: tail
    numbers[order] = np.searchsorted([HEAD_SHARE, 1 - TAIL_SHARE], share_before, side="right")
    numbers[counts_I == 0] = POPULARITY_GROUPS.index("cold")
    return Groups(POPULARITY_GROUPS, numbers)
