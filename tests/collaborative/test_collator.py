"""ContinuationCollator: one row of rewards for each supervised token, in their order."""

from __future__ import annotations

import pytest
import torch

from ilrec.collaborative.collator import ContinuationCollator
from ilrec.collaborative.cross_fitting import RewardFilter
from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sasrec import SASRecConfig
from ilrec.items.trie import ItemTrie
from ilrec.samples.collators import TrainingCollator

TRIE = ItemTrie.from_sequences([[5, 1, 9], [5, 2, 9], [3, 9]])


@pytest.fixture
def sasrec() -> SASRec:
    torch.manual_seed(0)
    return SASRec(3, SASRecConfig(hidden_size=8)).eval()


def collator(sasrec: SASRec | None) -> ContinuationCollator:
    reward_filter = RewardFilter([sasrec]) if sasrec else None
    return ContinuationCollator(TrainingCollator(pad_token_id=0), reward_filter, TRIE)


def sample(input_ids: list[int], num_prompt: int, items: list[int], num_targets: int = 1) -> dict:
    """A sample whose first num_prompt tokens are not supervised."""
    labels = [-100] * num_prompt + input_ids[num_prompt:]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "items": items,
        "num_targets": num_targets,
        "user": 0,
    }


def test_rewards_stand_in_the_order_of_the_supervised_tokens(sasrec: SASRec):
    """The targets are item 0 (3 tokens) and item 2 (2 tokens): 5 rows, as many as labels. Each
    lists the trie's children and sums to 1."""
    samples = [sample([7, 5, 1, 9], 1, [1, 0]), sample([7, 7, 3, 9], 2, [0, 1, 2])]
    batch = collator(sasrec)(samples)
    offsets, tokens, values = batch["token_rewards"]
    assert len(offsets) - 1 == (batch["labels"] != -100).sum()
    assert tokens.tolist() == [3, 5, 1, 2, 9, 3, 5, 9]

    # The first target by hand, after the history of item 1: 3 is item 2 alone, 5 begins the items
    # 0 and 1.
    p = sasrec.item_probabilities([[1]])[0].tolist()
    both = p[0] + p[1]
    assert values[:5].tolist() == pytest.approx([p[2], both, p[0] / both, p[1] / both, 1.0], 1e-5)


def test_rewards_of_every_item_are_those_of_each_alone(sasrec: SASRec):
    """A window with two targets gives the rows of two samples with one target each, in their
    order."""
    window = sample([3, 9, 5, 1, 9, 5, 2, 9], 2, [2, 0, 1], num_targets=2)
    first = sample([3, 9, 5, 1, 9], 2, [2, 0])
    second = sample([3, 9, 5, 1, 9, 5, 2, 9], 5, [2, 0, 1])
    together = collator(sasrec)([window])["token_rewards"]
    each = collator(sasrec)([first, second])["token_rewards"]
    for actual, expected in zip(together, each, strict=True):
        torch.testing.assert_close(actual, expected)


def test_continuations_without_a_filter_are_the_same_tokens():
    """An item begins with 3 or 5, after 5 comes 1 or 2, and then the end token: the tokens of the
    nodes on the path of target 0."""
    batch = collator(None)([sample([7, 5, 1, 9], 1, [1, 0])])
    offsets, tokens, values = batch["token_rewards"]
    assert offsets.tolist() == [0, 2, 4, 5]
    assert tokens.tolist() == [3, 5, 1, 2, 9]
    assert values.tolist() == [0.0] * 5
