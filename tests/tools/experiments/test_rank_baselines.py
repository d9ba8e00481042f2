"""Popularity, item-kNN and SASRec on the full catalogue: by hand, and by the protocol of
ilrec/rank.py."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from conftest import NUM_ITEMS
from rank_baselines import ItemKNNConfig, item_knn, main, popularity

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sections import SASRecConfig
from ilrec.errors import InputError
from ilrec.interactions.reading import read_interactions


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
    main(
        [
            "--method",
            method,
            "--data",
            str(data),
            "--output",
            str(tmp_path / "valid.json"),
            "--split",
            "valid",
        ]
    )
    content, ranks = (
        json.loads((tmp_path / "valid.json").read_text()),
        np.load(tmp_path / "valid.npy"),
    )
    assert content["protocol"]["split"] == "valid" and content["protocol"]["num_users"] == len(
        ranks
    )
    assert content["metrics"]["hit@10"] == pytest.approx((ranks <= 10).mean())


def test_unknown_field_is_refused(data, tmp_path):
    with pytest.raises(
        InputError,
        match="unknown field 'similarty' for --method item_knn; did you mean 'similarity'",
    ):
        main(
            [
                "--method",
                "item_knn",
                "--data",
                str(data),
                "--output",
                str(tmp_path / "x.json"),
                "--similarty",
                "cosine",
            ]
        )
    assert not (tmp_path / "x.json").exists()


def test_a_filter_of_another_numbering_is_refused(data, tmp_path):
    """As many items, their names the other way round: SASRec's first item is the data's last."""
    SASRec(NUM_ITEMS, SASRecConfig(hidden_size=8)).save(
        tmp_path / "sasrec", [str(item) for item in range(NUM_ITEMS)][::-1]
    )
    with pytest.raises(
        InputError,
        match="sasrec: this SASRec was trained on 24 items, as many as the data has, but not",
    ):
        main(
            [
                "--method",
                "sasrec",
                "--sasrec",
                str(tmp_path / "sasrec"),
                "--data",
                str(data),
                "--output",
                str(tmp_path / "x.json"),
            ]
        )
    assert not (tmp_path / "x.json").exists()


def test_rankings_say_whose_ranks_they_hold(data, tmp_path):
    """The same users for every method; a directory in which one user has another name is told
    apart."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    users = json.loads((other / "tiny.inter.json").read_text())
    (other / "tiny.inter.json").write_text(
        json.dumps({("me" if user == "3" else user): row for user, row in users.items()})
    )
    digests = []
    for method, directory in (("popularity", data), ("item_knn", data), ("popularity", other)):
        main(["--method", method, "--data", str(directory), "--output", str(tmp_path / "x.json")])
        protocol = json.loads((tmp_path / "x.json").read_text())["protocol"]
        digests.append((protocol["users_sha256"], protocol["items_sha256"]))
    assert (
        digests[0] == digests[1]
        and digests[0][1] == digests[2][1]
        and digests[0][0] != digests[2][0]
    )
