"""Popularity, item-kNN and SASRec on the full catalogue: by hand, and by the protocol of ilrec/rank.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from rank_baselines import ItemKNNConfig, item_knn, main, popularity

from ilrec.data.interactions import read_interactions
from ilrec.errors import InputError


def test_item_knn_is_summed_cosine(data):
    """float64, by hand: an item's neighbours without itself, added up over the history."""
    dataset = read_interactions(str(data), 5)
    counts = np.zeros((dataset.num_users, dataset.num_items))
    for user, sequence in enumerate(dataset.training_sequences()):
        np.add.at(counts[user], np.asarray(sequence), 1)
    norms = np.linalg.norm(counts, axis=0).clip(1e-12)
    similarity = (counts / norms).T @ (counts / norms)
    np.fill_diagonal(similarity, 0)
    histories, _ = dataset.evaluation("test")
    scores = item_knn(dataset, ItemKNNConfig(num_neighbours=dataset.num_items))(histories)
    expected = np.stack([similarity[np.asarray(history)].sum(axis=0) for history in histories])
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_popularity_counts_training_items_alone(data):
    dataset = read_interactions(str(data), 5)
    scores = popularity(dataset)(dataset.evaluation("test")[0])
    assert scores.shape == (dataset.num_users, dataset.num_items)
    assert scores[0].sum() == sum(map(len, dataset.training_sequences()))


@pytest.mark.parametrize("method", ["popularity", "item_knn"])
def test_command_writes_metrics_and_ranks(method, data, tmp_path):
    main(["--method", method, "--data", str(data), "--output", str(tmp_path / "valid.json"), "--split", "valid"])
    content, ranks = json.loads((tmp_path / "valid.json").read_text()), np.load(tmp_path / "valid.npy")
    assert content["protocol"]["split"] == "valid" and content["protocol"]["num_users"] == len(ranks)
    assert content["metrics"]["hit@10"] == pytest.approx((ranks <= 10).mean())


def test_unknown_field_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="unknown field 'similarty' for --method item_knn; did you mean 'similarity'"):
        main(["--method", "item_knn", "--data", str(data), "--output", str(tmp_path / "x.json"), "--similarty", "cosine"])
    assert not (tmp_path / "x.json").exists()
