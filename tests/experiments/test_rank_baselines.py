"""Popularity, item-kNN and SASRec on the full catalogue: by hand, and by the protocol of
ilrec/rank.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_ITEMS

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sasrec import SASRecConfig
from ilrec.errors import InputError
from ilrec.experiments.rank_baselines import ItemKNNConfig, item_knn, main, popularity
from ilrec.interactions.reading import read_interactions
from ilrec.ranking.results import read_ranking


def rank(method: str, data: Path, output: Path, *words: str) -> None:
    main(["--method", method, "--data", str(data), "--output", str(output), *words])


def test_item_knn_is_summed_cosine(data):
    """float64, by hand: an item's neighbours without itself, added up over the history."""
    dataset = read_interactions(str(data), 5)
    counts = np.zeros((dataset.num_users, dataset.num_items))
    for user, sequence in enumerate(dataset.training_sequences()):
        np.add.at(counts[user], np.asarray(sequence), 1)
    norms = np.linalg.norm(counts, axis=0).clip(1e-12)
    similarity = (counts / norms).T @ (counts / norms)
    # An item is not its own neighbour.
    np.fill_diagonal(similarity, 0)
    histories = dataset.evaluation("test").histories
    scores = item_knn(dataset, ItemKNNConfig(num_neighbours=dataset.num_items))(histories)
    expected = np.stack([similarity[np.asarray(history)].sum(axis=0) for history in histories])
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_popularity_counts_training_items_alone(data):
    dataset = read_interactions(str(data), 5)
    scores = popularity(dataset)(dataset.evaluation("test").histories)
    assert scores.shape == (dataset.num_users, dataset.num_items)
    assert scores[0].sum() == sum(map(len, dataset.training_sequences()))


@pytest.mark.parametrize("method", ["popularity", "item_knn"])
def test_command_writes_metrics_and_ranks(method, data, tmp_path):
    output = tmp_path / "valid.json"
    rank(method, data, output, "--split", "valid")
    content = json.loads(output.read_text())
    ranks = read_ranking(output).target_ranks.ranks
    assert content["protocol"]["split"] == "valid"
    assert content["protocol"]["num_users"] == len(ranks)
    assert content["metrics"]["hit@10"] == pytest.approx((ranks <= 10).mean())


def test_unknown_field_is_refused(data, tmp_path):
    message = "unknown field 'similarty' for --method item_knn; did you mean 'similarity'"
    with pytest.raises(InputError, match=message):
        rank("item_knn", data, tmp_path / "x.json", "--similarty", "cosine")
    assert not (tmp_path / "x.json").exists()


def test_a_negative_k_core_is_refused(data, tmp_path):
    message = "command line: k_core: expected a whole number, 0 or more, got '-1'"
    with pytest.raises(InputError, match=message):
        rank("popularity", data, tmp_path / "x.json", "--k_core=-1")


def test_a_filter_of_another_numbering_is_refused(data, tmp_path):
    """As many items, their names the other way round: SASRec's first item is the data's last."""
    names = [str(item) for item in range(NUM_ITEMS)]
    model = SASRec(NUM_ITEMS, SASRecConfig(hidden_size=8))
    model.save(tmp_path / "sasrec", names[::-1])
    message = "sasrec: this SASRec was trained on 24 items, as many as the data has, but not"
    with pytest.raises(InputError, match=message):
        rank("sasrec", data, tmp_path / "x.json", "--sasrec", str(tmp_path / "sasrec"))
    assert not (tmp_path / "x.json").exists()


def test_rankings_say_whose_ranks_they_hold(data, tmp_path):
    """The same users for every method; a directory in which one user has another name is told
    apart."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    users = json.loads((other / "tiny.inter.json").read_text())
    users["me"] = users.pop("3")
    (other / "tiny.inter.json").write_text(json.dumps(users))

    protocols = []
    for method, directory in (("popularity", data), ("item_knn", data), ("popularity", other)):
        rank(method, directory, tmp_path / "x.json")
        protocols.append(json.loads((tmp_path / "x.json").read_text())["protocol"])
    popularity_here, knn_here, popularity_there = protocols
    for name in ("users_sha256", "items_sha256"):
        assert popularity_here[name] == knn_here[name]
    assert popularity_here["items_sha256"] == popularity_there["items_sha256"]
    assert popularity_here["users_sha256"] != popularity_there["users_sha256"]
