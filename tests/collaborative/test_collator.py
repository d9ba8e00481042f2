"""Continuations and their rewards in a batch: one row per supervised token, in the tokens' order.

The trie has three items: 5 1, 5 2 and 3, each with the end token 9.
"""

import pytest
import torch

from ilrec.collaborative.collator import ContinuationCollator
from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sections import SASRecConfig
from ilrec.items.trie import ItemTrie
from ilrec.samples.collators import TrainingCollator

TRIE = ItemTrie.from_sequences([[5, 1, 9], [5, 2, 9], [3, 9]])


def sasrec() -> SASRec:
    torch.manual_seed(0)
    return SASRec(3, SASRecConfig(hidden_size=8)).eval()


def collator(filter_: SASRec | None) -> ContinuationCollator:
    return ContinuationCollator(TrainingCollator(pad_token_id=0), filter_, TRIE)


def sample(input_ids: list[int], num_prompt: int, items: list[int], num_targets: int = 1) -> dict:
    """The first num_prompt tokens are not supervised."""
    labels = [-100] * num_prompt + input_ids[num_prompt:]
    return {"input_ids": input_ids, "labels": labels, "items": items, "num_targets": num_targets}


def test_rewards_stand_in_the_order_of_the_supervised_tokens():
    """Targets 0 (3 tokens) and 2 (2 tokens): 5 rows, as many as labels; each row sums to 1 and
    lists the trie's children."""
    samples = [sample([7, 5, 1, 9], 1, [1, 0]), sample([7, 7, 3, 9], 2, [0, 1, 2])]
    filter_ = sasrec()
    batch = collator(filter_)(samples)
    offsets, tokens, values = batch["token_rewards"]
    assert len(offsets) - 1 == (batch["labels"] != -100).sum()
    assert tokens.tolist() == [3, 5, 1, 2, 9, 3, 5, 9]
    # By hand: after nothing 3 or 5, after 5 the items 5 1 and 5 2 share their own probability.
    p = filter_.item_probabilities([[1]])[0].tolist()
    expected = [p[2], p[0] + p[1], p[0] / (p[0] + p[1]), p[1] / (p[0] + p[1]), 1.0]
    assert values[:5].tolist() == pytest.approx(expected, rel=1e-5)


def test_rewards_of_every_item_are_those_of_each_alone():
    """A window with two targets gives the rows of two samples with one each, in their order."""
    collate = collator(sasrec())
    window = sample([3, 9, 5, 1, 9, 5, 2, 9], 2, [2, 0, 1], num_targets=2)
    alone = [
        sample([3, 9, 5, 1, 9], 2, [2, 0]),
        sample([3, 9, 5, 1, 9, 5, 2, 9], 5, [2, 0, 1]),
    ]
    together = collate([window])["token_rewards"]
    each = collate(alone)["token_rewards"]
    for actual, expected in zip(together, each, strict=True):
        torch.testing.assert_close(actual, expected)


def test_continuations_without_a_filter_are_the_same_tokens():
    """After nothing 3 or 5, after 5 1 or 2, then the end: the children of the trie's nodes on
    target 0's path. Their rewards are 0."""
    batch = collator(None)([sample([7, 5, 1, 9], 1, [1, 0])])
    offsets, tokens, values = batch["token_rewards"]
    assert offsets.tolist() == [0, 2, 4, 5]
    assert tokens.tolist() == [3, 5, 1, 2, 9]
    assert values.tolist() == [0.0] * 5
