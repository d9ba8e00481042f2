"""All that is measured of one ranking: metrics over all cases, and over groups of users and items.

    lists, target_ranks -> Measured -> ranking.json (results.py)

Shapes: C cases, T targets, K ranked items, U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ilrec.interactions.cases import Cases
from ilrec.interactions.dataset import InteractionDataset
from ilrec.ranking.beyond_accuracy import (
    Distance,
    coverage,
    diversities,
    gini,
    mean_of_items,
    self_information,
)
from ilrec.ranking.groups import (
    POPULARITY_GROUPS,
    Groups,
    history_groups,
    interaction_counts,
    popularity_groups,
)
from ilrec.ranking.metrics import TargetRanks, flat_targets, ranking_metrics

# The groups of a ranking, by the name of what they are made by.
GROUPED_BY = ("history", "popularity")


class Measured(NamedTuple):
    """metrics: {"hit@10": ...}. groups: {"history": {"3 to 5": {"num_cases": ..., "hit@10": ...}},
    "popularity": {"tail": {"num_targets": ..., ...}}}. docs/metrics.md defines each."""

    metrics: dict[str, float]
    groups: dict[str, dict[str, dict[str, float]]]


class Catalogue:
    """What the training interactions say about items, and how far apart two items are."""

    def __init__(self, dataset: InteractionDataset, distance: Distance | None) -> None:
        self.num_items = dataset.num_items
        self.counts_I = interaction_counts(dataset.training_sequences(), dataset.num_items)
        self.groups = popularity_groups(self.counts_I)
        self.distance = distance

    def metrics(self, items_CK: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
        """The metrics of lists that need no target. Without a distance there is no diversity."""
        information_I = self_information(self.counts_I)
        in_tail_I = self.groups.numbers >= POPULARITY_GROUPS.index("tail")
        found = {}
        for k in cutoffs:
            items = items_CK[:, :k]
            found[f"coverage@{k}"] = coverage(items, self.num_items)
            found[f"gini@{k}"] = gini(items, self.num_items)
            found[f"popularity@{k}"] = mean_of_items(items, self.counts_I)
            found[f"novelty@{k}"] = mean_of_items(items, information_I)
            found[f"tail@{k}"] = mean_of_items(items, in_tail_I)
        if self.distance is not None:
            for k, value in diversities(items_CK, self.distance, cutoffs).items():
                found[f"diversity@{k}"] = value
        # No list of one item has a diversity, and JSON has no NaN.
        return {name: value for name, value in found.items() if not np.isnan(value)}


def measure(
    dataset: InteractionDataset,
    cases: Cases,
    items_CK: np.ndarray,
    target_ranks: TargetRanks,
    cutoffs: Sequence[int],
    distance: Distance | None = None,
) -> Measured:
    """Everything that ranking.json holds of these lists.

    items_CK: the K best items of each case, K at least the largest cutoff; -1 is no item.
    target_ranks: of the cases' targets. distance: between two items, for the diversity of lists.
    """
    catalogue = Catalogue(dataset, distance)
    metrics = ranking_metrics(target_ranks, cutoffs) | catalogue.metrics(items_CK, cutoffs)
    by_history = history_groups(dataset.training_sequences().lengths)
    groups = {
        "history": _of_users(by_history, catalogue, items_CK, target_ranks, cutoffs),
        "popularity": _of_items(catalogue.groups, cases, items_CK, target_ranks, cutoffs),
    }
    return Measured(metrics, groups)


def _of_users(
    groups: Groups,
    catalogue: Catalogue,
    items_CK: np.ndarray,
    target_ranks: TargetRanks,
    cutoffs: Sequence[int],
) -> dict[str, dict[str, float]]:
    """All metrics over the cases of each group's users. Groups without any are left out."""
    group_C = groups.numbers[target_ranks.users]
    found = {}
    for number, name in enumerate(groups.names):
        is_inside_C = group_C == number
        if is_inside_C.any():
            inside = target_ranks.of_targets(is_inside_C[target_ranks.cases])
            found[name] = {
                "num_cases": int(is_inside_C.sum()),
                **ranking_metrics(inside, cutoffs),
                **catalogue.metrics(items_CK[is_inside_C], cutoffs),
            }
    return found


def _of_items(
    groups: Groups,
    cases: Cases,
    items_CK: np.ndarray,
    target_ranks: TargetRanks,
    cutoffs: Sequence[int],
) -> dict[str, dict[str, float]]:
    """Accuracy for the targets in each group, and the group's share of what is recommended. Groups
    without targets have that share alone."""
    _, items_T = flat_targets(cases.targets)
    found = {}
    for number, name in enumerate(groups.names):
        is_inside_T = groups.numbers[items_T] == number
        of_group: dict[str, float] = {"num_targets": int(is_inside_T.sum())}
        if is_inside_T.any():
            of_group |= ranking_metrics(target_ranks.of_targets(is_inside_T), cutoffs)
        for k in cutoffs:
            of_group[f"share@{k}"] = mean_of_items(items_CK[:, :k], groups.numbers == number)
        found[name] = of_group
    return found
