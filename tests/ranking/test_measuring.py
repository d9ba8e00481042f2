"""All metrics of a tiny ranking with its groups, by hand."""

import numpy as np
import pytest

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.ranking.beyond_accuracy import prefix_distance
from ilrec.ranking.measuring import measure
from ilrec.ranking.metrics import target_ranks_from_lists

# Training: user 0 has 0, 0, 0; user 1 has 0, 0, 1, 2, 3. So item 0 has five of eight interactions,
# items 1 to 3 one each, item 4 none: head, then before items 1, 2, 3 lie 5, 6 and 7 of 8, which
# makes middle, middle, tail; and cold.
SEQUENCES = [[0, 0, 0, 1, 4], [0, 0, 1, 2, 3, 1, 3]]
ITEMS = np.array([[0, 4, 1], [1, 3, -1]])
SCORES = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, -np.inf]])


@pytest.fixture(scope="module")
def measured():
    dataset = InteractionDataset(
        "tiny", ["0", "1"], list("abcde"), Ragged.from_rows(SEQUENCES), None, 0, ""
    )
    cases = dataset.evaluation("test")  # The targets are 4 and 3, each second in its list.
    distance = prefix_distance([("a", "b"), ("a", "c"), ("d", "c"), ("a", "d"), ("e", "c")])
    ranks = target_ranks_from_lists(ITEMS, SCORES, cases)
    return measure(dataset, cases, ITEMS, ranks, (1, 2), distance)


def test_metrics(measured):
    metrics = measured.metrics
    assert (metrics["hit@1"], metrics["hit@2"], metrics["mrr@2"]) == (0.0, 1.0, 0.5)
    assert metrics["coverage@2"] == 0.8
    # Item 0: 5 interactions; 4: 0; 1 and 3: one each.
    assert metrics["popularity@2"] == pytest.approx((5 / 2 + 1) / 2)
    assert metrics["novelty@1"] == pytest.approx((np.log2(8 / 5) + 3) / 2)
    # One of two in each list: the tail includes what is cold.
    assert metrics["tail@2"] == 0.5
    # 0 and 4 share nothing, 1 and 3 one of two levels. A list of one item has no diversity.
    assert metrics["diversity@2"] == pytest.approx(0.75)
    assert "diversity@1" not in metrics


def test_users_by_history(measured):
    groups = measured.groups["history"]
    assert list(groups) == ["3", "5"]
    assert groups["3"]["num_cases"] == 1 and groups["3"]["coverage@2"] == 0.4
    assert groups["5"]["popularity@2"] == 1.0


def test_items_by_popularity(measured):
    groups = measured.groups["popularity"]
    assert list(groups) == ["head", "middle", "tail", "cold"]
    assert groups["head"] == {"num_targets": 0, "share@1": 0.5, "share@2": 0.25}
    assert groups["tail"]["num_targets"] == 1 and groups["tail"]["hit@2"] == 1.0
    assert groups["cold"]["ndcg@2"] == pytest.approx(1 / np.log2(3))
    shares = [groups[name]["share@2"] for name in groups]
    assert shares == [0.25, 0.25, 0.25, 0.25]
