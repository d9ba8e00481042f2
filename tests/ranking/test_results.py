"""ranking.json and the table."""

import json

import numpy as np
import pytest
import torch

from ilrec.errors import InputError
from ilrec.ranking.results import check_ranking, format_table, write_ranking


def test_both_files_are_written(tmp_path):
    place = tmp_path / "new"
    metrics = {"hit@5": 0.5}
    protocol = {"num_users": 2}
    write_ranking(place / "ranking.json", metrics, protocol, torch.tensor([7, 1]))
    content = json.loads((place / "ranking.json").read_text())
    assert content == {"metrics": metrics, "protocol": protocol}
    assert np.load(place / "ranking.npy").tolist() == [7, 1]
    assert sorted(path.name for path in place.iterdir()) == ["ranking.json", "ranking.npy"]


def test_a_name_for_the_ranks_is_no_name_for_the_metrics(tmp_path):
    with pytest.raises(InputError, match="ranking.npy: this name is for the ranks"):
        check_ranking(tmp_path / "ranking.npy")
    check_ranking(tmp_path / "ranking.json")


def test_table():
    rows = {"sft": {"hit@5": 0.25}, "stage1": {"hit@5": 0.5, "ndcg@5": 0.125}}
    table = format_table(rows, ("hit@5", "ndcg@5"))
    assert table.splitlines() == [
        "           Hit@5    NDCG@5",
        "sft       0.2500         -",
        "stage1    0.5000    0.1250",
    ]
