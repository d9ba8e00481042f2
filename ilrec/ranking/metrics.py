"""Hit@K and NDCG@K of full-catalogue ranking with one relevant item per user.

The rank of the target is 1 + the number of OTHER items placed before it or tied with it. A tie
counts against the target, so that a scorer that gives every item the same score does not look good;
items that share a semantic ID or a title are tied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The rank of a target that is not in the list: beyond any K.
NOT_RANKED = 2**31 - 1


def ranks_from_scores(scores_BI: Tensor, targets_B: Tensor) -> Tensor:
    """Rank of each target among all I items: int64 [B]. Raises ValueError on NaN."""
    if scores_BI.isnan().any():
        raise ValueError("ranks_from_scores: NaN in the scores")
    own_B1 = scores_BI.gather(1, targets_B[:, None])
    return (scores_BI >= own_B1).sum(dim=1)


def ranks_from_lists(items_BK: Tensor, scores_BK: Tensor, targets_B: Tensor) -> Tensor:
    """Rank of each target in a list of the K best items: int64 [B], NOT_RANKED where it is absent.
    Padded with item -1."""
    if scores_BK.isnan().any():
        raise ValueError("ranks_from_lists: NaN in the scores")
    is_target_BK = items_BK == targets_B[:, None]
    own_B1 = scores_BK.masked_fill(~is_target_BK, -torch.inf).amax(dim=1, keepdim=True)
    ranks_B = ((scores_BK >= own_B1) & (items_BK >= 0)).sum(dim=1)
    return torch.where(is_target_BK.any(dim=1), ranks_B, NOT_RANKED)


def ranking_metrics(ranks_B: Tensor, cutoffs: Sequence[int]) -> dict[str, float]:
    """{"hit@K": ..., "ndcg@K": ...} over users. One relevant item: its gain is 1 / log2(rank + 1),
    the ideal is 1."""
    ranks = ranks_B.double()
    metrics = {f"hit@{k}": (ranks <= k).double().mean().item() for k in cutoffs}
    gains = 1 / torch.log2(ranks + 1)
    return metrics | {
        f"ndcg@{k}": torch.where(ranks <= k, gains, 0.0).mean().item() for k in cutoffs
    }
