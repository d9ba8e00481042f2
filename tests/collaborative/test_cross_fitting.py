"""Folds of users: who has seen whom, and which filter gives whose reward."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_filters import CONFIG, NUM_ITEMS

from ilrec.collaborative.cross_fitting import RewardFilter, fold_directory, train_folds
from ilrec.collaborative.sasrec import SASRec
from ilrec.collaborative.sasrec_training import train_sasrec
from ilrec.errors import InputError

ITEM_IDS = [f"item {number}" for number in range(NUM_ITEMS)]
SEQUENCES = [np.array([user % 5, user % 7, user % 11]) for user in range(9)]
VALID = ([[0, 1]], [2])
FOLDED = dataclasses.replace(CONFIG, num_folds=3, num_epochs=2)


def nothing(line: str) -> None:
    pass


def untrained(seed: int) -> SASRec:
    torch.manual_seed(seed)
    return SASRec(NUM_ITEMS, CONFIG).eval()


def test_a_fold_is_trained_on_all_other_users():
    filters = train_folds(SEQUENCES, NUM_ITEMS, FOLDED, VALID, nothing)
    assert len(filters) == 3
    # Users 1, 4 and 7 are fold 1.
    others = [SEQUENCES[user] for user in (0, 2, 3, 5, 6, 8)]
    single = dataclasses.replace(FOLDED, num_folds=0)
    expected = train_sasrec(others, NUM_ITEMS, single, VALID, nothing)
    torch.testing.assert_close(filters[1].state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_users_reward_comes_from_the_fold_of_the_user():
    filters = [untrained(0), untrained(1), untrained(2)]
    histories = [[1], [2, 3], [4], [5, 6, 7]]
    found = RewardFilter(filters).item_probabilities(histories, [7, 3, 4, 2])
    for row, fold in enumerate((1, 0, 1, 2)):
        expected = filters[fold].item_probabilities([histories[row]])[0]
        torch.testing.assert_close(found[row], expected)


def test_a_single_filter_serves_all_users():
    model = untrained(0)
    found = RewardFilter([model]).item_probabilities([[1], [2]], [5, 8])
    assert torch.equal(found, model.item_probabilities([[1], [2]]))


def test_all_folds_are_read_or_none(tmp_path: Path):
    SASRec(NUM_ITEMS, FOLDED).save(tmp_path, ITEM_IDS)
    for fold in range(3):
        untrained(fold).save(fold_directory(tmp_path, fold), ITEM_IDS)
    found = RewardFilter.load(tmp_path, ITEM_IDS).filters
    assert len(found) == 3
    assert torch.equal(found[2].items.weight, untrained(2).items.weight)

    (fold_directory(tmp_path, 1) / "model.safetensors").unlink()
    with pytest.raises(InputError, match="fold-1: not a complete SASRec: model.safetensors"):
        RewardFilter.load(tmp_path, ITEM_IDS)


def test_one_fold_is_refused():
    with pytest.raises(InputError, match="num_folds: expected 0, or 2 and more, got 1"):
        dataclasses.replace(CONFIG, num_folds=1)
