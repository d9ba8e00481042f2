"""Rank what every recommender has to beat on the full catalogue: popularity, item-kNN, or a trained
SASRec.

    python tools/experiments/rank_baselines.py --method popularity --data DIR \
        --output runs/popularity/test.json
    python tools/experiments/rank_baselines.py --method item_knn --data DIR \
        --output runs/knn/test.json [--similarity cosine] [--num_neighbours 100]
    python tools/experiments/rank_baselines.py --method sasrec --sasrec runs/sasrec --data DIR \
        --split valid --output runs/sasrec/valid.json

The protocol is that of ilrec/rank.py: every item is a candidate, but those of the history if no
user of the data has an item twice; the history is all items before the target; ties count against
the target. Counts and similarities are taken from the training items alone. Writes the metrics and,
beside them, NAME.npz with the rank of every target. Item-kNN needs `pip install implicit`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ilrec.collaborative.popularity import popularity_scores
from ilrec.collaborative.sasrec import SASRec
from ilrec.config.command_line import ArgumentParser
from ilrec.config.data_flags import add_data_flags, data_config
from ilrec.config.item_knn import SIMILARITIES, ItemKNNConfig
from ilrec.config.loading import build_section, parse_overrides
from ilrec.config.sasrec import CANDIDATES
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.reading import read_data
from ilrec.items.embeddings import read_embeddings
from ilrec.processes import run_entry
from ilrec.ranking.beyond_accuracy import cosine_distance
from ilrec.ranking.results import check_ranking, compared_columns, format_table, write_ranking
from ilrec.ranking.scorers import measure_scorer

METHODS = ("popularity", "item_knn", "sasrec")
# From the histories of B users to a score for each item: [B, I].
Scorer = Callable[[Ragged], Tensor]


def interaction_matrix(rows: Ragged, num_items: int) -> csr_matrix:
    """float32 [rows, items]: how often each row has each item."""
    # An item that a row has twice makes two entries, which the matrix adds up.
    row_numbers = np.repeat(np.arange(len(rows)), rows.lengths)
    items = np.concatenate([np.empty(0, dtype=np.int32), *rows])
    ones = np.ones(len(items), dtype=np.float32)
    return csr_matrix((ones, (row_numbers, items)), shape=(len(rows), num_items))


def item_knn(dataset: InteractionDataset, config: ItemKNNConfig) -> Scorer:
    """A candidate's score is its similarity to the items of the history, summed over those that
    have it as a neighbour."""
    try:
        from implicit import nearest_neighbours
    except ImportError:
        raise InputError("item-kNN needs the package implicit: pip install implicit") from None
    # Every item is its own nearest neighbour, which tells nothing about other items: one more
    # neighbour is asked for, and the item itself dropped.
    recommender = getattr(nearest_neighbours, SIMILARITIES[config.similarity])
    model = recommender(K=config.num_neighbours + 1)
    training = interaction_matrix(dataset.training_sequences(), dataset.num_items)
    model.fit(training, show_progress=False)
    similarity = model.similarity.copy()
    similarity.setdiag(0)

    def score(histories: Ragged) -> Tensor:
        matrix = interaction_matrix(histories, dataset.num_items)
        return torch.from_numpy((matrix @ similarity).toarray())

    return score


def popularity(dataset: InteractionDataset) -> Scorer:
    """The same scores for every user: how often each item was chosen."""
    counts_I = torch.from_numpy(popularity_scores(dataset.training_sequences(), dataset.num_items))
    return lambda histories: counts_I.expand(len(histories), -1)


def sasrec(dataset: InteractionDataset, directory: str) -> Scorer:
    """What `ilrec sasrec` trained on the same items."""
    return SASRec.load(directory, dataset.item_ids, str(dataset.rule)).item_probabilities


def make_scorer(
    arguments: argparse.Namespace, config: ItemKNNConfig, dataset: InteractionDataset
) -> Scorer:
    if arguments.method == "popularity":
        return popularity(dataset)
    if arguments.method == "item_knn":
        return item_knn(dataset, config)
    return sasrec(dataset, arguments.sasrec)


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The program's own flags, and the fields of ItemKNNConfig."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--method", required=True, choices=METHODS)
    add_data_flags(parser)
    parser.add_argument(
        "--output", required=True, type=Path, help="JSON file to write, in place of an older one"
    )
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument(
        "--candidates", choices=CANDIDATES, default="auto", help="as of ilrec/rank.py"
    )
    parser.add_argument(
        "--sasrec",
        default="",
        help="directory that `ilrec sasrec` wrote, for --method sasrec",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        help="FILE.npy with FILE.ids.json: also measure the diversity of lists over these item "
        "embeddings",
    )
    parser.add_fields("fields of --method item_knn", ItemKNNConfig)
    arguments, rest = parser.parse_pairs(argv)
    fields = parse_overrides(rest)
    # Only item-kNN has fields of its own; for the others any field is unknown.
    known = ItemKNNConfig.__dataclass_fields__ if arguments.method == "item_knn" else {}
    for name in fields:
        if name not in known:
            raise InputError(
                f"command line: unknown field {name!r} for --method {arguments.method}"
                f"{nearest(name, known)}"
            )
    return arguments, fields


def main(argv: list[str]) -> None:
    arguments, fields = parse_arguments(argv)
    given = {name: (value, "command line") for name, value in fields.items()}
    config = build_section(ItemKNNConfig, given)
    check_ranking(arguments.output)

    # One way for all methods: scores of every item, then the rank of the target among them.
    dataset = read_data(data_config(arguments))
    distance = None
    if arguments.embeddings:
        distance = cosine_distance(read_embeddings(arguments.embeddings, dataset.item_ids))
    scorer = make_scorer(arguments, config, dataset)
    measured, protocol, target_ranks = measure_scorer(
        dataset,
        arguments.split,
        scorer,
        arguments.candidates,
        distance,
        method=arguments.method,
        diversity_over="embeddings" if distance else "nothing",
        **{name: getattr(config, name) for name in fields},
    )
    try:
        write_ranking(arguments.output, measured, protocol, target_ranks)
    finally:
        # The figures are printed even if they could not be written.
        columns = compared_columns(measured.metrics)
        print(format_table({arguments.method: measured.metrics}, columns), flush=True)


if __name__ == "__main__":
    run_entry(main)
