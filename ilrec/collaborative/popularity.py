"""Popularity: how often each item was chosen, the baseline that every filter must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def popularity_scores(
    train_sequences: Sequence[Sequence[int] | np.ndarray], num_items: int
) -> np.ndarray:
    """Interactions of each item, float64 [I]."""
    chosen = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in train_sequences])
    return np.bincount(chosen, minlength=num_items).astype(np.float64)
