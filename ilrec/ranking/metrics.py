"""How well recommendations find the targets: Hit, NDCG, MRR and recall at K.

A case is one recommendation: a user's history, and one or several targets that should be found. The
rank of a target is its place in the list, from 1 on. Ties count against the targets: of equal
scores, the targets come last, so that a scorer which gives every item the same score does not look
good. Items that share a semantic ID or a title are tied.

Shapes: C cases, T targets of all cases, K ranked items, I items, B cases of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilrec.interactions.cases import Cases

# The rank of a target that is not in the list: beyond any K.
NOT_RANKED = 2**31 - 1

NAMES = ("hit", "ndcg", "mrr", "recall")
# One array of item numbers for each case.
Rows = Sequence[Any]
# The comparison of many targets' scores with those of all items is made for so many at a time.
TARGETS_AT_ONCE = 256


@dataclass(frozen=True)
class TargetRanks:
    """The rank of every target.

    ranks: int64 [T], from 1 on, or NOT_RANKED. cases: int64 [T], the case of each, ascending.
    users: int64 [C], the user of each case.
    """

    ranks: np.ndarray
    cases: np.ndarray
    users: np.ndarray

    @classmethod
    def one_each(cls, ranks_C: np.ndarray) -> TargetRanks:
        """One target a case, and each case of another user."""
        numbers = np.arange(len(ranks_C))
        return cls(ranks_C, numbers, numbers)

    def of_targets(self, is_kept_T: np.ndarray) -> TargetRanks:
        """Some of the targets, and the cases that have any of them."""
        kept_cases, cases = np.unique(self.cases[is_kept_T], return_inverse=True)
        return TargetRanks(self.ranks[is_kept_T], cases, self.users[kept_cases])


def flat_targets(targets: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(the case of each target, its item): int64 [T] each. An item that a case has twice among its
    targets counts once."""
    lengths = np.fromiter(map(len, targets), dtype=np.int64, count=len(targets))
    cases = np.repeat(np.arange(len(targets)), lengths)
    items = np.concatenate([np.empty(0, dtype=np.int64), *targets]).astype(np.int64)
    keys = cases * (items.max(initial=0) + 1) + items
    first = np.sort(np.unique(keys, return_index=True)[1])
    return cases[first], items[first]


def ranks_from_scores(scores_BI: np.ndarray, targets: Rows) -> np.ndarray:
    """The rank of each target (of flat_targets) among all I items: int64 [T].

    targets: [B]. Raises ValueError on NaN.
    """
    if np.isnan(scores_BI).any():
        raise ValueError("ranks_from_scores: NaN in the scores")
    cases, items = flat_targets(targets)
    scores_T = scores_BI[cases, items]
    num_reaching_T = np.empty(len(items), dtype=np.int64)
    for start in range(0, len(items), TARGETS_AT_ONCE):
        block = slice(start, start + TARGETS_AT_ONCE)
        # The target itself is one of the items that reach its score.
        reaches = scores_BI[cases[block]] >= scores_T[block, None]
        num_reaching_T[block] = reaches.sum(axis=1)
    return num_reaching_T - _tied_targets_behind(cases, scores_T)


def target_ranks_from_lists(
    items_CK: np.ndarray, scores_CK: np.ndarray, cases: Cases
) -> TargetRanks:
    """The rank of each target in the list of its case's K best items, NOT_RANKED if it is absent.

    Item -1 is padding. Raises ValueError on NaN.
    """
    if np.isnan(scores_CK).any():
        raise ValueError("target_ranks_from_lists: NaN in the scores")
    numbers, items = flat_targets(cases.targets)
    items_TK, scores_TK = items_CK[numbers], scores_CK[numbers]
    is_target_TK = items_TK == items[:, None]
    scores_T = np.where(is_target_TK, scores_TK, -np.inf).max(axis=1, initial=-np.inf)
    num_reaching_T = ((scores_TK >= scores_T[:, None]) & (items_TK >= 0)).sum(axis=1)
    ranks_T = num_reaching_T - _tied_targets_behind(numbers, scores_T)
    ranks_T = np.where(is_target_TK.any(axis=1), ranks_T, NOT_RANKED)
    return TargetRanks(ranks_T, numbers, cases.users)


def _tied_targets_behind(cases_T: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
    """How many targets of the same case have the same score and come later: int64 [T].

    All of them reach a target's score, and only those before it push it back.
    """
    order = np.lexsort((scores_T, cases_T))  # It is stable: tied targets stay in their order.
    cases_T, scores_T = cases_T[order], scores_T[order]
    begins_T = np.ones(len(order), dtype=bool)
    begins_T[1:] = (cases_T[1:] != cases_T[:-1]) | (scores_T[1:] != scores_T[:-1])
    sizes = np.diff(np.flatnonzero(np.append(begins_T, True)))
    ends_T = np.repeat(np.cumsum(sizes), sizes)
    behind_T = np.empty(len(order), dtype=np.int64)
    behind_T[order] = ends_T - 1 - np.arange(len(order))
    return behind_T


def values_per_case(target_ranks: TargetRanks, metric: str) -> np.ndarray:
    """What each case adds to the mean of a metric such as "ndcg@10": float64 [C].

    With n targets, of which those with a rank of at most K are found (definitions of RecBole 1.2):
        hit@K     1 if any is found
        recall@K  found / n
        mrr@K     1 / the best rank, if it is found
        ndcg@K    the sum of 1 / log2(rank + 1) over the found, divided by its largest possible
                  value, which is that of the ranks 1 .. min(n, K)
    With one target, recall is hit, and ndcg is 1 / log2(rank + 1). Raises ValueError on another
    name.
    """
    name, _, cutoff = metric.partition("@")
    k = int(cutoff)
    num_cases = len(target_ranks.users)
    found_T = target_ranks.ranks <= k
    cases, ranks = target_ranks.cases[found_T], target_ranks.ranks[found_T]

    if name == "mrr":
        best_C = np.full(num_cases, np.inf)
        np.minimum.at(best_C, cases, ranks)
        return 1 / best_C
    if name == "ndcg":
        gains_C = np.bincount(cases, weights=1 / np.log2(ranks + 1.0), minlength=num_cases)
        num_targets_C = np.bincount(target_ranks.cases, minlength=num_cases)
        ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1.0))
        return gains_C / ideal[np.minimum(num_targets_C, k) - 1]
    num_found_C = np.bincount(cases, minlength=num_cases)
    if name == "hit":
        return (num_found_C > 0).astype(np.float64)
    if name == "recall":
        return num_found_C / np.bincount(target_ranks.cases, minlength=num_cases)
    raise ValueError(f"metric: expected one of {', '.join(NAMES)}, got {name!r}")


def ranking_metrics(target_ranks: TargetRanks, cutoffs: Sequence[int]) -> dict[str, float]:
    """{"hit@K": ..., "ndcg@K": ..., "mrr@K": ..., "recall@K": ...}: means over cases."""
    metrics = {}
    for name in NAMES:
        for k in cutoffs:
            metric = f"{name}@{k}"
            metrics[metric] = float(values_per_case(target_ranks, metric).mean())
    return metrics
