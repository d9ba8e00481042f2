"""Which items may be recommended: all of them, or those that are not in the user's history.

Reviews and ratings name an item once for each user, so the next item is never one of the history. A
purchase or a play may come again. All methods of a table follow one rule: `auto` leaves the history
out if no user of the data has an item twice.

Shapes: U users of the data, B users of a batch, K ranked items, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilrec.ranking.metrics import target_ranks_from_scores

# The scores of a batch are this many users times the catalogue.
USERS_PER_BATCH = 256

# One array or sequence of item numbers for each user.
Histories = Sequence[Any]


def choose_candidates(wanted: str, sequences: Histories) -> str:
    """One of ilrec.config.sections.CANDIDATES -> "all" or "unseen". The data decides `auto`."""
    if wanted != "auto":
        return wanted
    return "unseen" if first_repeat(sequences) is None else "all"


def first_repeat(sequences: Histories) -> int | None:
    """The number of the first sequence that has an item twice, None if there is none."""
    for number, sequence in enumerate(sequences):
        if len(np.unique(sequence)) < len(sequence):
            return number
    return None


def drop_history_from_lists(items_BK: Tensor, histories: Histories) -> Tensor:
    """Ranked items, with -1 (no item) in place of those in the user's history: int64 [B, K], on the
    CPU."""
    kept_BK = items_BK.clone()
    for items_K, history in zip(kept_BK, histories, strict=True):
        is_known_K = np.isin(items_K.numpy(), history)
        items_K[torch.from_numpy(is_known_K)] = -1
    return kept_BK


def drop_history_from_scores(scores_BI: Tensor, histories: Histories) -> Tensor:
    """A copy of the scores, with -inf for the items of each user's history: [B, I]."""
    scores_BI = scores_BI.clone()
    for scores_I, history in zip(scores_BI, histories, strict=True):
        scores_I[torch.as_tensor(np.asarray(history, dtype=np.int64))] = -torch.inf
    return scores_BI


def target_ranks_by_scores(
    histories: Histories, targets_U: np.ndarray, score: Callable[[Any], Tensor], candidates: str
) -> Tensor:
    """The target's rank for each user, by a method that scores every item: int64 [U].

    score(histories of B users) -> [B, I]. candidates: all or unseen.
    """
    ranks = []
    for start in range(0, len(targets_U), USERS_PER_BATCH):
        users = slice(start, start + USERS_PER_BATCH)
        scores_BI = score(histories[users])
        if candidates == "unseen":
            scores_BI = drop_history_from_scores(scores_BI, histories[users])
        targets_B = torch.from_numpy(targets_U[users])
        ranks.append(target_ranks_from_scores(scores_BI, targets_B))
    return torch.cat(ranks)
