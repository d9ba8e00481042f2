"""Popularity, by hand."""

from __future__ import annotations

import numpy as np

from ilrec.collaborative.popularity import popularity_scores


def test_popularity_by_hand():
    scores = popularity_scores([np.array([0, 2, 2]), np.array([2])], num_items=4)
    assert scores.tolist() == [1, 0, 3, 0]
