"""Which items may be recommended: all of them, or those that are not in the user's history.

Reviews and ratings name an item once for each user, so the next item is never one of the history. A
purchase or a play may come again. All methods of a table follow one rule: `auto` leaves the history
out if no user of the data has an item twice.

Shapes: C cases, B cases of a batch, T targets, K ranked items, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilrec.interactions.cases import Cases
from ilrec.ranking.metrics import TargetRanks, flat_targets, ranks_from_scores

# The scores of a batch are this many cases times the catalogue.
CASES_PER_BATCH = 256

# One array or sequence of item numbers for each user.
Histories = Sequence[Any]
# From the histories of B cases to a score for each item: [B, I].
Score = Callable[[Any], Tensor]


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


def rank_by_scores(
    cases: Cases, score: Score, candidates: str, list_length: int
) -> tuple[np.ndarray, TargetRanks]:
    """(lists, ranks) by a method that scores every item: the best items of each case, best first,
    int64 [C, K] (-1 where there are no more), and the rank of each target among all candidates.

    candidates: all or unseen.
    """
    lists, ranks = [], []
    for batch, scores_BI in scored_batches(cases.histories, score, candidates):
        ranks.append(ranks_from_scores(scores_BI.numpy(), cases.targets[batch]))
        lists.append(_best_items(scores_BI, list_length))
    number_T, _ = flat_targets(cases.targets)
    return np.concatenate(lists), TargetRanks(np.concatenate(ranks), number_T, cases.users)


def _best_items(scores_BI: Tensor, list_length: int) -> np.ndarray:
    """The items with the highest scores, best first: int64 [B, list_length], -1 where there are no
    more candidates."""
    best = scores_BI.topk(min(list_length, scores_BI.shape[1]))
    items_BK = best.indices.new_full((len(scores_BI), list_length), -1)
    items_BK[:, : best.indices.shape[1]] = best.indices.masked_fill(best.values == -torch.inf, -1)
    return items_BK.numpy()


def scored_batches(
    histories: Histories, score: Score, candidates: str
) -> Iterator[tuple[slice, Tensor]]:
    """(which histories, their scores [B, I] on the CPU), -inf for what is no candidate."""
    for start in range(0, len(histories), CASES_PER_BATCH):
        batch = slice(start, start + CASES_PER_BATCH)
        scores_BI = score(histories[batch]).cpu()
        if candidates == "unseen":
            scores_BI = drop_history_from_scores(scores_BI, histories[batch])
        yield batch, scores_BI
