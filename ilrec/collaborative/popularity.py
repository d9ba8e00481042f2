"""Popularity: how often each item was chosen, the baseline that every filter must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ilrec.ranking.groups import interaction_counts


def popularity_scores(
    train_sequences: Sequence[Sequence[int] | np.ndarray], num_items: int
) -> np.ndarray:
    """Interactions of each item, float64 [I]."""
    return interaction_counts(train_sequences, num_items).astype(np.float64)
