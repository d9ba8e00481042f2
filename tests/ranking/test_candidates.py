"""Items of the history leave the ranking if no user of the data has an item twice."""

import numpy as np
import pytest
import torch

from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.ranking.candidates import (
    choose_candidates,
    drop_history_from_lists,
    drop_history_from_scores,
    rank_by_scores,
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
    cases = Cases(np.arange(3), Ragged.from_rows(HISTORIES), Ragged.from_rows([[1], [1], [2]]))
    by_lists = target_ranks_from_lists(kept.numpy(), scores.gather(1, items).numpy(), cases)

    lists, by_scores = rank_by_scores(cases, lambda histories: scores, "unseen", list_length=5)
    assert by_lists.ranks.tolist() == by_scores.ranks.tolist() == [2, 4, 2]
    # Best first; there is no fifth item, and no item of the history.
    assert lists.tolist() == [[3, 1, -1, -1, -1], [0, 2, 3, 1, -1], [0, 2, 1, -1, -1]]

    lists, by_scores = rank_by_scores(cases, lambda histories: scores, "all", list_length=2)
    assert by_scores.ranks.tolist() == [4, 4, 2]
    assert lists.tolist() == [[0, 2]] * 3


def test_the_callers_scores_are_left_alone():
    """Popularity hands out one row for all users."""
    row = torch.arange(4.0)
    dropped = drop_history_from_scores(row.expand(3, -1), HISTORIES)
    assert row.tolist() == [0, 1, 2, 3]
    assert dropped[0].tolist() == [-torch.inf, 1, -torch.inf, 3]
    assert dropped[1].equal(row)


def test_a_target_of_the_history_is_a_miss():
    kept = drop_history_from_lists(torch.tensor([[3, 1]]), [[3]])
    case = Cases(np.arange(1), Ragged.from_rows([[3]]), Ragged.from_rows([[3]]))
    target_ranks = target_ranks_from_lists(kept.numpy(), np.array([[0.9, 0.1]]), case)
    assert target_ranks.ranks.tolist() == [NOT_RANKED]
