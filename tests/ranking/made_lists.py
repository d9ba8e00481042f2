"""Recommendations that are computed and not drawn, so that every library and version gets the same:
29 cases, lists of 10 of 31 items, one to four targets."""

from __future__ import annotations

import numpy as np

from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged

NUM_CASES, NUM_ITEMS, K = 29, 31, 10
CUTOFFS = (1, 5, 10)
# Items 0 and 17 were never chosen in training.
COUNTS_I = np.arange(NUM_ITEMS) ** 2 * 3 % 17


def made_lists() -> tuple[np.ndarray, np.ndarray, Cases]:
    """(items [C, K], scores [C, K], cases). A step that is no multiple of 31, a prime, never
    reaches an item twice."""
    cases = np.arange(NUM_CASES)[:, None]
    items_CK = (7 * cases + np.arange(K) * (1 + cases % 5)) % NUM_ITEMS
    # Popular items are recommended more often.
    items_CK[::3] = np.arange(K) * 2
    scores_CK = -np.arange(K) - cases / 100
    targets = []
    for case in range(NUM_CASES):
        targets.append([(case + 5 * number) % NUM_ITEMS for number in range(1 + case % 4)])
    histories = Ragged.from_rows([[]] * NUM_CASES)
    made = Cases(np.arange(NUM_CASES), histories, Ragged.from_rows(targets))
    return items_CK, scores_CK, made
