"""The reward collator and the means that are logged; the loop itself is tested in test_model.py and test_train.py."""

import pytest
import torch

from ilrec.collaborative.sasrec import SASRec
from ilrec.config import SASRecConfig
from ilrec.data.samples import TrainingCollator
from ilrec.items.trie import ItemTrie
from ilrec.training.trainer import RewardCollator, _means

TRIE = ItemTrie.from_sequences([[5, 1, 9], [5, 2, 9], [3, 9]])


def test_rewards_stand_in_the_order_of_the_supervised_tokens():
    """Targets 0 (3 tokens) and 2 (2 tokens): 5 rows, as many as labels; each row sums to 1 and lists the trie's children."""
    torch.manual_seed(0)
    sasrec = SASRec(3, SASRecConfig(hidden_size=8)).eval()
    samples = [{"input_ids": [7, 5, 1, 9], "labels": [-100, 5, 1, 9], "history_items": [1], "target_item": 0},
               {"input_ids": [7, 7, 3, 9], "labels": [-100, -100, 3, 9], "history_items": [0, 1], "target_item": 2}]
    batch = RewardCollator(TrainingCollator(pad_token_id=0), sasrec, TRIE)(samples)
    offsets, tokens, values = batch["token_rewards"]
    assert len(offsets) - 1 == (batch["labels"] != -100).sum()
    assert tokens.tolist() == [3, 5, 1, 2, 9, 3, 5, 9]
    p = sasrec.item_probabilities([[1]])[0].tolist()
    assert values[:5].tolist() == pytest.approx([p[2], p[0] + p[1], p[0] / (p[0] + p[1]), p[1] / (p[0] + p[1]), 1.0], rel=1e-5)


def test_means_are_per_supervised_token():
    """Sums 6, 3, 1.5 over 3 tokens with 12 negatives and one token that has none."""
    assert _means(torch.tensor([6.0, 3.0, 1.5, 12.0, 1.0, 3.0])) == pytest.approx(
        {"loss/preference": 2.0, "loss/distillation": 1.0, "loss/reward": 0.5, "negatives/per_token": 4.0,
         "negatives/rows_without": 1 / 3})


def test_no_token_at_all_divides_by_nothing():
    assert set(_means(torch.zeros(6)).values()) == {0.0}
