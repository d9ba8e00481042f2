"""The k-core: users and items with fewer than k interactions are removed until none is left."""

from __future__ import annotations

import numpy as np


def k_core(users_E: np.ndarray, items_E: np.ndarray, k: int) -> np.ndarray:
    """bool [E]: which interactions are in the k-core.

    users_E, items_E: numbers >= 0 of the user and of the item of each interaction, integers.
    """
    keep_E = np.ones(len(users_E), dtype=bool)
    while True:
        # Removing an item may leave a user with too few, and the other way round. So both sides are
        # counted again until a round removes nothing.
        enough_E = keep_E.copy()
        for side_E in (users_E, items_E):
            num_numbers = side_E.max(initial=-1) + 1
            counts = np.bincount(side_E[keep_E], minlength=num_numbers)
            enough_E &= counts[side_E] >= k
        if enough_E.sum() == keep_E.sum():
            return keep_E
        keep_E = enough_E
