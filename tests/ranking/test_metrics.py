"""The targets' ranks and the metrics, against cases worked by hand, ties and absent targets too."""

import pytest
import torch

from ilrec.ranking.metrics import (
    NOT_RANKED,
    ranking_metrics,
    target_ranks_from_lists,
    target_ranks_from_scores,
)


def test_ranks_from_scores_count_ties_against_the_target():
    scores = torch.tensor(
        [
            [0.9, 0.3, 0.5, 0.1],  # Target 1: .9 and .5 are above .3. Rank 3.
            [1.0, 1.0, 1.0, 1.0],  # Target 2: tied with all others. Rank 4.
            [0.0, 0.0, 0.0, 2.0],  # Target 3: the best. Rank 1.
        ]
    )
    assert target_ranks_from_scores(scores, torch.tensor([1, 2, 3])).tolist() == [3, 4, 1]


def test_ranks_from_lists():
    """Row 0: the second. Row 1: tied with another (they share a leaf), hence rank 2. Row 2: absent.
    Row 3: padding does not count."""
    items = torch.tensor([[4, 7, 1], [4, 7, 1], [4, 7, 1], [7, -1, -1]])
    scores = torch.tensor(
        [[-1.0, -2, -3], [-1, -1, -3], [-1, -2, -3], [-1, -torch.inf, -torch.inf]]
    )
    target_ranks = target_ranks_from_lists(items, scores, torch.tensor([7, 4, 9, 7]))
    assert target_ranks.tolist() == [2, 2, NOT_RANKED, 1]


def test_metrics_by_hand():
    """Ranks 1, 2, 6, absent. hit@1 = 1/4, hit@5 = 2/4, hit@10 = 3/4.

    ndcg@5 = (1 + 1/log2 3) / 4 = (1 + .63093) / 4 = .407732; ndcg@10 adds 1/log2 7 = .356207:
    .496784.
    """
    metrics = ranking_metrics(torch.tensor([1, 2, 6, NOT_RANKED]), (1, 5, 10))
    expected = {
        "hit@1": 0.25,
        "hit@5": 0.5,
        "hit@10": 0.75,
        "ndcg@1": 0.25,
        "ndcg@5": 0.407732,
        "ndcg@10": 0.496784,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        target_ranks_from_scores(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]))
