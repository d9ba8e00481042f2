"""The filter that gives a user's rewards has not seen that user (`num_folds` of SASRecConfig).

A filter remembers the items it was trained on, so its reward on a training item repeats the label
where it should tell what other users like. Therefore the users are dealt into folds. For each fold
a filter is trained on the users of all other folds, and it gives the rewards of this fold: the
out-of-fold predictions of stacking (Wolpert 1992), also called cross-fitting (Chernozhukov et al.
2018). The filter of all users is trained as well; it gives metrics and item embeddings.

Shapes: B histories, I items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilrec.collaborative.sasrec import SASRec, Sequences
from ilrec.collaborative.sasrec_training import train_sasrec
from ilrec.config.sasrec import SASRecConfig


def fold_directory(directory: str | Path, fold: int) -> Path:
    """Where the filter lies that gives the rewards of this fold's users."""
    return Path(directory) / f"fold-{fold}"


def train_folds(
    train_sequences: Sequences,
    num_items: int,
    config: SASRecConfig,
    valid: tuple[Sequences, Sequence[int] | np.ndarray],
    log: Callable[[str], object],
) -> list[SASRec]:
    """A filter for each of `config.num_folds` folds; arguments as of train_sasrec.

    User u is in fold u % num_folds. A fold's filter is trained on the sequences of all other users,
    in their order. Its best epoch is chosen by the validation items of all users, none of which is
    a training item.
    """
    # A fold's filter has no folds of its own.
    single = dataclasses.replace(config, num_folds=0)
    filters = []
    for fold in range(config.num_folds):
        log(f"fold {fold + 1} of {config.num_folds}")
        others = []
        for user, sequence in enumerate(train_sequences):
            if user % config.num_folds != fold:
                others.append(sequence)
        filters.append(train_sasrec(others, num_items, single, valid, log))
    return filters


class RewardFilter:
    """p_cf(i | user) of docs/method.md: from the filter of the user's fold, or from the only filter
    there is."""

    def __init__(self, filters: Sequence[SASRec]) -> None:
        self.filters = filters

    @classmethod
    def load(cls, directory: str | Path, item_ids: Sequence[str], split: str = "") -> RewardFilter:
        """What tools/train_sasrec.py wrote.

        Arguments as of SASRec.load. Raises InputError as that does, also if a fold is missing.
        """
        of_all_users = SASRec.load(directory, item_ids, split)
        folds = range(of_all_users.config.num_folds)
        of_folds = []
        for fold in folds:
            of_folds.append(SASRec.load(fold_directory(directory, fold), item_ids, split))
        return cls(of_folds or [of_all_users])

    def item_probabilities(
        self, histories: Sequence[Sequence[int] | np.ndarray], users: Sequence[int]
    ) -> Tensor:
        """float32 [B, I], as SASRec.item_probabilities. users: the number of each history's user,
        [B]."""
        probabilities_BI = torch.empty(len(histories), self.filters[0].num_items)
        folds_B = np.asarray(users) % len(self.filters)
        for fold, model in enumerate(self.filters):
            rows = np.flatnonzero(folds_B == fold).tolist()
            if rows:
                of_fold = [histories[row] for row in rows]
                probabilities_BI[rows] = model.item_probabilities(of_fold)
        return probabilities_BI
