"""ranking.json and the table."""

import json

import numpy as np
import torch

from ilrec.ranking.results import format_table, write_ranking


def test_write(tmp_path):
    write_ranking(
        tmp_path / "new" / "ranking.json", {"hit@5": 0.5}, {"num_users": 2}, torch.tensor([7, 1])
    )
    assert json.loads((tmp_path / "new" / "ranking.json").read_text()) == {
        "metrics": {"hit@5": 0.5},
        "protocol": {"num_users": 2},
    }
    assert np.load(tmp_path / "new" / "ranking.npy").tolist() == [7, 1]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["ranking.json", "ranking.npy"]


def test_table():
    table = format_table(
        {"sft": {"hit@5": 0.25}, "stage1": {"hit@5": 0.5, "ndcg@5": 0.125}}, ("hit@5", "ndcg@5")
    )
    assert table.splitlines() == [
        "           Hit@5    NDCG@5",
        "sft       0.2500         -",
        "stage1    0.5000    0.1250",
    ]
