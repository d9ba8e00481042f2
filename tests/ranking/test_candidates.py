"""Items of the history leave the ranking if no user of the data has an item twice."""

import numpy as np
import pytest
import torch

from ilrec.ranking.candidates import (
    choose_candidates,
    drop_history_from_lists,
    drop_history_from_scores,
    target_ranks_by_scores,
)
from ilrec.ranking.metrics import NOT_RANKED, target_ranks_from_lists

HISTORIES = [np.array([0, 2]), np.array([], dtype=np.int32), np.array([3])]


@pytest.mark.parametrize(
    ("sequences", "chosen"),
    [([[0, 1], [1, 0]], "unseen"), ([[0, 1], [1, 1]], "all"), ([], "unseen")],
)
def test_the_data_decides(sequences, chosen):
    assert choose_candidates("auto", [np.array(sequence) for sequence in sequences]) == chosen
    assert choose_candidates("all", sequences) == "all"


def test_lists_and_scores_agree():
    scores = torch.tensor([[0.4, 0.1, 0.3, 0.2]] * 3)
    items = torch.tensor([[0, 2, 3, 1]] * 3)
    kept = drop_history_from_lists(items, HISTORIES)
    assert kept.tolist() == [[-1, -1, 3, 1], [0, 2, 3, 1], [0, 2, -1, 1]]
    targets = np.array([1, 1, 2])
    by_lists = target_ranks_from_lists(kept, scores.gather(1, items), torch.from_numpy(targets))

    def by_scores(candidates: str) -> list[int]:
        ranks = target_ranks_by_scores(HISTORIES, targets, lambda histories: scores, candidates)
        return ranks.tolist()

    assert by_lists.tolist() == by_scores("unseen") == [2, 4, 2]
    assert by_scores("all") == [4, 4, 2]


def test_the_callers_scores_are_left_alone():
    """Popularity hands out one row for all users."""
    row = torch.arange(4.0)
    dropped = drop_history_from_scores(row.expand(3, -1), HISTORIES)
    assert row.tolist() == [0, 1, 2, 3]
    assert dropped[0].tolist() == [-torch.inf, 1, -torch.inf, 3]
    assert dropped[1].equal(row)


def test_a_target_of_the_history_is_a_miss():
    kept = drop_history_from_lists(torch.tensor([[3, 1]]), [[3]])
    target_ranks = target_ranks_from_lists(kept, torch.tensor([[0.9, 0.1]]), torch.tensor([3]))
    assert target_ranks.tolist() == [NOT_RANKED]
