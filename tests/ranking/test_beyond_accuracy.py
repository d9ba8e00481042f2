"""What lists are like: by hand, and against the values of RecBole (reference_metrics.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_lists import COUNTS_I, CUTOFFS, NUM_ITEMS, made_lists

from ilrec.ranking.beyond_accuracy import (
    cosine_distance,
    coverage,
    diversities,
    gini,
    mean_of_items,
    prefix_distance,
    self_information,
)

RECBOLE = json.loads(Path(__file__).with_name("reference_metrics.json").read_text())[
    "RecBole 1.2.1"
]
# Two lists, the second with room for one more.
LISTS = np.array([[0, 1, 2], [0, 3, -1]])


def test_coverage_and_gini_by_hand():
    """Items 0 to 3 of 5 are recommended, 2, 1, 1, 1 and 0 times. Sorted 0, 1, 1, 1, 2 with weights
    -4, -2, 0, 2, 4: (-2 + 2 + 8) / (5 x 5) = .32."""
    assert coverage(LISTS, 5) == 0.8
    assert gini(LISTS, 5) == pytest.approx(0.32)
    assert gini(np.array([[0, 1], [2, 3]]), 4) == 0.0
    # One item of four: (4 - 1) / 4.
    assert gini(np.array([[2], [2]]), 4) == 0.75


def test_means_over_lists_by_hand():
    """List means: (8 + 4 + 2) / 3 and (8 + 2) / 2. An empty list does not count."""
    counts = np.array([8, 4, 2, 2, 0])
    assert mean_of_items(LISTS, counts) == pytest.approx((14 / 3 + 5) / 2)
    assert mean_of_items(np.vstack([LISTS, [[-1, -1, -1]]]), counts) == pytest.approx(29 / 6)
    assert np.isnan(mean_of_items(np.array([[-1]]), counts))


def test_self_information_by_hand():
    """16 interactions: 8 of them are one bit, 2 are three bits, none counts as one: four bits."""
    assert self_information(np.array([8, 4, 2, 2, 0])).tolist() == [1, 2, 3, 3, 4]


def test_diversity_over_semantic_ids_by_hand():
    """Of three levels, 0 and 1 share two (1/3 apart), 0 and 2 one (2/3), 1 and 2 one (2/3), 0 and 3
    none (1). Item 4 is item 0 with a fourth level: 3 of 4 are shared."""
    codes = [("a1", "b1", "c1"), ("a1", "b1", "c2"), ("a1", "b2", "c1"), ("a2", "b1", "c1")]
    distance = prefix_distance([*codes, ("a1", "b1", "c1", "d0")])
    found = diversities(LISTS, distance, (1, 2, 3))
    assert np.isnan(found[1])
    assert found[2] == pytest.approx((1 / 3 + 1) / 2)
    # The second list has two items, however large K is.
    assert found[3] == pytest.approx(((1 / 3 + 2 / 3 + 2 / 3) / 3 + 1) / 2)
    assert distance(np.array([0, 4]), np.array([4, 4])).tolist() == [0.25, 0.0]


def test_diversity_over_embeddings_by_hand():
    """0 and 1 are orthogonal, 0 and 3 opposite, 0 and 2 alike; zeros have no direction."""
    vectors = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    distance = cosine_distance(vectors)
    found = distance(np.zeros(4, dtype=int), np.array([1, 2, 3, 4]))
    assert found == pytest.approx([1.0, 0.0, 2.0, 1.0])
    assert diversities(LISTS, distance, (3,))[3] == pytest.approx(((1 + 0 + 1) / 3 + 2) / 2)


def test_values_of_recbole():
    items, _, _ = made_lists()
    # RecBole's tail: the 40 % least popular of the items seen in training, ties by number.
    seen = np.flatnonzero(COUNTS_I)
    tail = seen[np.lexsort((seen, COUNTS_I[seen]))][: int(len(seen) * 0.4)]
    in_tail = np.isin(np.arange(NUM_ITEMS), tail)
    for k in CUTOFFS:
        assert coverage(items[:, :k], NUM_ITEMS) == pytest.approx(RECBOLE[f"itemcoverage@{k}"])
        assert gini(items[:, :k], NUM_ITEMS) == pytest.approx(RECBOLE[f"giniindex@{k}"])
        popularity = mean_of_items(items[:, :k], COUNTS_I)
        assert popularity == pytest.approx(RECBOLE[f"averagepopularity@{k}"])
        share = mean_of_items(items[:, :k], in_tail)
        assert share == pytest.approx(RECBOLE[f"tailpercentage@{k}"])
