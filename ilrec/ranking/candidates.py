"""Which items may be recommended: all of them, or those that are not in the user's history.

Reviews and ratings name an item once for each user, so that an item of the history is never the
next one; a purchase or a play may come again. One rule for all methods of a table: `auto` leaves
the history out where no user of the data has an item twice.

Shapes: B users, K ranked items, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilrec.ranking.metrics import ranks_from_scores

# Scores of one batch: this many users times the catalogue.
USERS_PER_BATCH = 256

Histories = Sequence[Any]  # of item numbers, each an array or a sequence


def choose_candidates(wanted: str, sequences: Histories) -> str:
    """One of config.CANDIDATES, `auto` decided by the data: "unseen" where no sequence has an item
    twice, else "all"."""
    if wanted != "auto":
        return wanted
    return "unseen" if first_repeat(sequences) is None else "all"


def first_repeat(sequences: Histories) -> int | None:
    """The number of the first sequence that has an item twice."""
    return next(
        (
            number
            for number, sequence in enumerate(sequences)
            if len(np.unique(sequence)) < len(sequence)
        ),
        None,
    )


def drop_history_from_lists(items_BK: Tensor, histories: Histories) -> Tensor:
    """Ranked items with -1 (no item) in the place of those in the user's history: int64 [B, K], on
    the CPU."""
    kept = [
        np.where(np.isin(items, history), -1, items)
        for items, history in zip(items_BK.numpy(), histories, strict=True)
    ]
    return torch.from_numpy(np.stack(kept))


def drop_history_from_scores(scores_BI: Tensor, histories: Histories) -> Tensor:
    """A copy with -inf for the items of each user's history: [B, I]."""
    scores_BI = scores_BI.clone()
    for scores_I, history in zip(scores_BI, histories, strict=True):
        scores_I[torch.as_tensor(np.asarray(history, dtype=np.int64))] = -torch.inf
    return scores_BI


def rank_by_scores(
    histories: Histories, targets_U: np.ndarray, score: Callable[[Any], Tensor], candidates: str
) -> Tensor:
    """The target's rank for each user: int64 [users]. score(histories) -> [B, I]; candidates: all
    or unseen."""
    ranks = []
    for start in range(0, len(targets_U), USERS_PER_BATCH):
        batch = histories[start : start + USERS_PER_BATCH]
        scores_BI = score(batch)
        if candidates == "unseen":
            scores_BI = drop_history_from_scores(scores_BI, batch)
        ranks.append(
            ranks_from_scores(
                scores_BI, torch.from_numpy(targets_U[start : start + USERS_PER_BATCH])
            )
        )
    return torch.cat(ranks)
