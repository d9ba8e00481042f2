"""Beam search against exhaustive scoring of every item with a tiny random Llama in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec.items.trie import ItemTrie
from ilrec.ranking.beam_search import trie_beam_search

EOS = 19
# Items of 1 to 3 tokens before the end token. Items 4 and 5 are spelled alike.
SEQUENCES = [
    [3, 7, 1, EOS],
    [3, 7, 2, EOS],
    [3, 8, EOS],
    [4, EOS],
    [5, 6, 1, EOS],
    [5, 6, 1, EOS],
    [5, 7, EOS],
    [3, 1, 1, EOS],
]
PROMPTS = [[10, 11, 12, 13, 14], [12], [15, 15, 10]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=20,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double().eval()


def left_padded(prompts):
    """(ids, mask), both [prompts, the longest's tokens]."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


@torch.inference_mode()
def exhaustive(model, prompt):
    """Score of each item: the sum of its tokens' log-probabilities, without cache, padding or
    batch."""
    scores = []
    for sequence in SEQUENCES:
        logps = model(torch.tensor([prompt + sequence])).logits[0].log_softmax(-1)
        # The token at a place is predicted at the place before it.
        places = range(len(prompt) - 1, len(prompt) - 1 + len(sequence))
        scores.append(logps[list(places), sequence].sum().item())
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("num_beams", [8, 12])
def test_as_many_beams_as_items_is_exhaustive(model, num_beams):
    trie = ItemTrie.from_sequences(SEQUENCES)
    items, scores = trie_beam_search(model, *left_padded(PROMPTS), trie, num_beams)
    for row, prompt in enumerate(PROMPTS):
        expected = exhaustive(model, prompt)
        # Of equal scores the smaller item comes first. Rounding makes items 4 and 5 equal.
        best = sorted(range(8), key=lambda i: (-round(expected[i].item(), 9), i))
        assert items[row, :8].tolist() == best
        torch.testing.assert_close(scores[row, :8], expected[best], rtol=0, atol=1e-9)
        assert items[row, 8:].tolist() == [-1] * (num_beams - 8)
        assert scores[row, 8:].isneginf().all()


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_fewer_beams_score_their_items_right(model, num_beams):
    trie = ItemTrie.from_sequences(SEQUENCES)
    items, scores = trie_beam_search(model, *left_padded(PROMPTS), trie, num_beams)
    for row, prompt in enumerate(PROMPTS):
        assert len(set(items[row].tolist())) == num_beams
        assert (items[row] >= 0).all()
        expected = exhaustive(model, prompt)[items[row]]
        torch.testing.assert_close(scores[row], expected, rtol=0, atol=1e-9)
        assert scores[row].diff().le(1e-12).all(), "best first"


def test_padding_and_company_do_not_matter(model):
    trie = ItemTrie.from_sequences(SEQUENCES)
    together = trie_beam_search(model, *left_padded(PROMPTS), trie, 4)
    for row, prompt in enumerate(PROMPTS):
        alone = trie_beam_search(model, *left_padded([prompt]), trie, 4)
        assert together[0][row].tolist() == alone[0][0].tolist()
        torch.testing.assert_close(together[1][row], alone[1][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_beams", [2, 8])
def test_excluded_items_take_no_beam(model, num_beams):
    """Nothing for the first user; for the second one item of a shared leaf, a whole branch and a
    leaf; everything for the third. Even two beams find items that are left."""
    excluded = [[], [4, 2, 0, 1, 7, 3], list(range(8))]
    trie = ItemTrie.from_sequences(SEQUENCES)
    items, scores = trie_beam_search(model, *left_padded(PROMPTS), trie, num_beams, excluded)

    free, _ = trie_beam_search(model, *left_padded(PROMPTS[:1]), trie, num_beams)
    assert items[0].tolist() == free[0].tolist()

    # Item 4 is excluded and comes along with item 5, because they share a leaf.
    found = set(items[1].tolist()) - {-1}
    assert found <= {4, 5, 6}
    assert len(found) == min(num_beams, 3)
    expected = exhaustive(model, PROMPTS[1])
    torch.testing.assert_close(scores[1][:2], expected[items[1][:2]], rtol=0, atol=1e-9)

    assert (items[2] == -1).all()
    assert scores[2].isneginf().all()


def test_one_item_needs_one_beam(model):
    trie = ItemTrie.from_sequences([[4, EOS]])
    items, _ = trie_beam_search(model, *left_padded(PROMPTS), trie, 2)
    assert items.tolist() == [[0, -1]] * 3
