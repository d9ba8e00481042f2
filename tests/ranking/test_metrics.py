"""Ranks and metrics against cases worked by hand, with ties, absent and several targets; and
against the values of ranx and RecBole (reference_metrics.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_lists import CUTOFFS, made_lists

from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.ranking.metrics import (
    NOT_RANKED,
    TargetRanks,
    flat_targets,
    ranking_metrics,
    ranks_from_scores,
    target_ranks_from_lists,
    values_per_case,
)

REFERENCE = json.loads(Path(__file__).with_name("reference_metrics.json").read_text())


def cases_of(*targets: list[int]) -> Cases:
    histories = Ragged.from_rows([[]] * len(targets))
    return Cases(np.arange(len(targets)), histories, Ragged.from_rows(targets))


def test_ranks_from_scores_count_ties_against_the_target():
    scores = np.array(
        [
            [0.9, 0.3, 0.5, 0.1],  # Target 1: .9 and .5 are above .3. Rank 3.
            [1.0, 1.0, 1.0, 1.0],  # Target 2: tied with all others. Rank 4.
            [0.0, 0.0, 0.0, 2.0],  # Target 3: the best. Rank 1.
        ]
    )
    assert ranks_from_scores(scores, [[1], [2], [3]]).tolist() == [3, 4, 1]


def test_ranks_from_lists():
    """Row 0: the second. Row 1: tied with another (they share a leaf), hence rank 2. Row 2: absent.
    Row 3: padding does not count."""
    items = np.array([[4, 7, 1], [4, 7, 1], [4, 7, 1], [7, -1, -1]])
    scores = np.array([[-1.0, -2, -3], [-1, -1, -3], [-1, -2, -3], [-1, -np.inf, -np.inf]])
    found = target_ranks_from_lists(items, scores, cases_of([7], [4], [9], [7]))
    assert found.ranks.tolist() == [2, 2, NOT_RANKED, 1]
    assert found.cases.tolist() == found.users.tolist() == [0, 1, 2, 3]


def test_several_targets_take_different_places():
    """Case 0: items 3 and 5 have the best scores. Case 1: 2, 4 and 9 are tied behind item 1, so the
    targets 4 and 2 have the last two of these places, in their order. Item 8 is absent."""
    items = np.array([[3, 5, 1, 0], [1, 2, 4, 9]])
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 2.0, 2.0, 2.0]])
    cases = cases_of([5, 3], [4, 8, 2])
    assert target_ranks_from_lists(items, scores, cases).ranks.tolist() == [2, 1, 3, NOT_RANKED, 4]

    everything = np.full((2, 10), -9.0)
    np.put_along_axis(everything, items, scores, axis=1)
    # Item 8 is tied with all that is in no list.
    assert ranks_from_scores(everything, cases.targets).tolist() == [2, 1, 3, 10, 4]


def test_an_item_counts_once_among_the_targets():
    cases, items = flat_targets([np.array([4, 4, 1]), np.array([4])])
    assert cases.tolist() == [0, 0, 1] and items.tolist() == [4, 1, 4]


def test_metrics_by_hand():
    """Ranks 1, 2, 6, absent. hit@1 = 1/4, hit@5 = 2/4, hit@10 = 3/4.

    ndcg@5 = (1 + 1/log2 3) / 4 = (1 + .63093) / 4 = .407732; ndcg@10 adds 1/log2 7 = .356207:
    .496784. mrr@5 = (1 + 1/2) / 4 = .375; mrr@10 adds 1/6: .416667. Recall is hit.
    """
    metrics = ranking_metrics(TargetRanks.one_each(np.array([1, 2, 6, NOT_RANKED])), (1, 5, 10))
    expected = {"hit@1": 0.25, "hit@5": 0.5, "hit@10": 0.75}
    expected |= {"ndcg@1": 0.25, "ndcg@5": 0.407732, "ndcg@10": 0.496784}
    expected |= {"mrr@1": 0.25, "mrr@5": 0.375, "mrr@10": 0.416667}
    expected |= {"recall@1": 0.25, "recall@5": 0.5, "recall@10": 0.75}
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_metrics_of_several_targets_by_hand():
    """Case 0 has targets at 1, 4 and 9, case 1 one at 3, case 2 none that is found.

    ndcg@5 of case 0: (1 + 1/log2 5) / (1 + 1/log2 3 + 1/log2 4) = 1.430677 / 2.130930 = .671386.
    ndcg@2 of case 0: 1 / (1 + 1/log2 3) = .613147, because only two places are there.
    """
    ranks = TargetRanks(
        np.array([4, 1, 9, 3, NOT_RANKED, NOT_RANKED]), np.array([0, 0, 0, 1, 2, 2]), np.arange(3)
    )
    assert values_per_case(ranks, "hit@5").tolist() == [1, 1, 0]
    assert values_per_case(ranks, "recall@5") == pytest.approx([2 / 3, 1, 0])
    assert values_per_case(ranks, "mrr@5") == pytest.approx([1, 1 / 3, 0])
    assert values_per_case(ranks, "ndcg@5") == pytest.approx([0.671386, 0.5, 0], abs=1e-6)
    assert values_per_case(ranks, "ndcg@2") == pytest.approx([0.613147, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="expected one of hit, ndcg, mrr, recall, got 'map'"):
        values_per_case(ranks, "map@5")


def test_some_targets_with_their_cases():
    ranks = TargetRanks(np.array([4, 1, 3]), np.array([0, 0, 2]), np.array([7, 8, 9]))
    kept = ranks.of_targets(np.array([False, True, True]))
    assert (kept.ranks.tolist(), kept.cases.tolist(), kept.users.tolist()) == (
        [1, 3],
        [0, 1],
        [7, 9],
    )


@pytest.mark.parametrize("library", REFERENCE)
def test_values_of_other_libraries(library):
    items, scores, cases = made_lists()
    metrics = ranking_metrics(target_ranks_from_lists(items, scores, cases), CUTOFFS)
    theirs = {name: REFERENCE[library][name] for name in metrics}
    assert metrics == pytest.approx(theirs, abs=1e-9)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_scores(np.array([[float("nan"), 1.0]]), [[0]])
    with pytest.raises(ValueError, match="NaN"):
        target_ranks_from_lists(np.array([[3]]), np.array([[np.nan]]), cases_of([3]))
