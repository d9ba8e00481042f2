"""Users and items with few interactions, removed until none is left."""

from __future__ import annotations

import numpy as np


def k_core(users_E: np.ndarray, items_E: np.ndarray, k: int) -> np.ndarray:
    """bool [E]: the interactions left when users and items with fewer than k are removed until none
    is.

    users_E, items_E: int64 numbers >= 0 of the user and the item of each interaction.
    """
    keep_E = np.ones(len(users_E), dtype=bool)
    while True:
        enough_E = keep_E.copy()
        for side_E in (users_E, items_E):
            enough_E &= (
                np.bincount(side_E[keep_E], minlength=side_E.max(initial=-1) + 1)[side_E] >= k
            )
        if enough_E.sum() == keep_E.sum():
            return keep_E
        keep_E = enough_E
