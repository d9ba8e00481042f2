"""Hit@K and NDCG@K of full-catalogue ranking with one relevant item (the target) per user.

The target's rank is 1 + the number of OTHER items that are placed before it or tied with it. A tie
counts against the target, so that a scorer which gives every item the same score does not look
good. Items that share a semantic ID or a title are tied.

Shapes: B users, I items, K ranked items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The rank of a target that is not in the list: beyond any K.
NOT_RANKED = 2**31 - 1


def target_ranks_from_scores(scores_BI: Tensor, targets_B: Tensor) -> Tensor:
    """The rank of each target among all I items: int64 [B]. Raises ValueError on NaN."""
    if scores_BI.isnan().any():
        raise ValueError("target_ranks_from_scores: NaN in the scores")
    target_scores_B1 = scores_BI.gather(1, targets_B[:, None])
    # The target itself is one of the items that reach its score.
    return (scores_BI >= target_scores_B1).sum(dim=1)


def target_ranks_from_lists(items_BK: Tensor, scores_BK: Tensor, targets_B: Tensor) -> Tensor:
    """The rank of each target in a list of the K best items: int64 [B].

    NOT_RANKED if it is not in the list. Item -1 is padding. Raises ValueError on NaN.
    """
    if scores_BK.isnan().any():
        raise ValueError("target_ranks_from_lists: NaN in the scores")
    is_target_BK = items_BK == targets_B[:, None]
    target_scores_B1 = scores_BK.masked_fill(~is_target_BK, -torch.inf).amax(dim=1, keepdim=True)
    reaches_it_BK = (scores_BK >= target_scores_B1) & (items_BK >= 0)
    return torch.where(is_target_BK.any(dim=1), reaches_it_BK.sum(dim=1), NOT_RANKED)


def ranking_metrics(target_ranks_B: Tensor, cutoffs: Sequence[int]) -> dict[str, float]:
    """{"hit@K": ..., "ndcg@K": ...}, means over users.

    With one relevant item, its gain is 1 / log2(rank + 1) and the ideal gain is 1.
    """
    ranks_B = target_ranks_B.double()
    gains_B = 1 / torch.log2(ranks_B + 1)
    hits, ndcgs = {}, {}
    for k in cutoffs:
        is_hit_B = ranks_B <= k
        hits[f"hit@{k}"] = is_hit_B.double().mean().item()
        ndcgs[f"ndcg@{k}"] = torch.where(is_hit_B, gains_B, 0.0).mean().item()
    return hits | ndcgs
