"""Beam search against exhaustive scoring of every item with a tiny random Llama in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec.items.trie import ItemTrie
from ilrec.ranking.beam_search import trie_beam_search

EOS = 19
# Lengths 1 to 3 before the end token; items 4 and 5 are spelled alike.
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
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


@torch.inference_mode()
def exhaustive(model, prompt):
    """Score of each item: the sum of its tokens' log-probabilities, without cache, padding or
    batch."""
    scores = []
    for sequence in SEQUENCES:
        logps = model(torch.tensor([prompt + sequence])).logits[0].log_softmax(-1)
        scores.append(
            sum(logps[len(prompt) + i - 1, token].item() for i, token in enumerate(sequence))
        )
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("num_beams", [8, 12])
def test_as_many_beams_as_items_is_exhaustive(model, num_beams):
    items, scores = trie_beam_search(
        model, *left_padded(PROMPTS), ItemTrie.from_sequences(SEQUENCES), num_beams
    )
    for row, prompt in enumerate(PROMPTS):
        expected = exhaustive(model, prompt)
        best = sorted(range(8), key=lambda i: (-round(expected[i].item(), 9), i))
        assert items[row, :8].tolist() == best
        torch.testing.assert_close(scores[row, :8], expected[best], rtol=0, atol=1e-9)
        assert (
            items[row, 8:].tolist() == [-1] * (num_beams - 8) and scores[row, 8:].isneginf().all()
        )


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_fewer_beams_score_their_items_right(model, num_beams):
    items, scores = trie_beam_search(
        model, *left_padded(PROMPTS), ItemTrie.from_sequences(SEQUENCES), num_beams
    )
    for row, prompt in enumerate(PROMPTS):
        assert len(set(items[row].tolist())) == num_beams and (items[row] >= 0).all()
        torch.testing.assert_close(
            scores[row], exhaustive(model, prompt)[items[row]], rtol=0, atol=1e-9
        )
        assert scores[row].diff().le(1e-12).all()


def test_padding_and_company_do_not_matter(model):
    trie = ItemTrie.from_sequences(SEQUENCES)
    together = trie_beam_search(model, *left_padded(PROMPTS), trie, 4)
    for row, prompt in enumerate(PROMPTS):
        alone = trie_beam_search(model, *left_padded([prompt]), trie, 4)
        assert together[0][row].tolist() == alone[0][0].tolist()
        torch.testing.assert_close(together[1][row], alone[1][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_beams", [2, 8])
def test_excluded_items_take_no_beam(model, num_beams):
    """None for the first user; one leaf's first item, a whole branch; everything. Two beams find as
    many items as are left."""
    excluded = [[], [4, 2, 0, 1, 7, 3], list(range(8))]
    items, scores = trie_beam_search(
        model, *left_padded(PROMPTS), ItemTrie.from_sequences(SEQUENCES), num_beams, excluded
    )
    free, _ = trie_beam_search(
        model, *left_padded(PROMPTS[:1]), ItemTrie.from_sequences(SEQUENCES), num_beams
    )
    assert items[0].tolist() == free[0].tolist()
    expected = exhaustive(model, PROMPTS[1])
    found = set(items[1].tolist()) - {-1}  # 4 and 5 share a leaf
    assert found == {4, 5, 6} if num_beams == 8 else len(found) == 2 and found <= {4, 5, 6}
    torch.testing.assert_close(scores[1][:2], expected[items[1][:2]], rtol=0, atol=1e-9)
    assert (items[2] == -1).all() and scores[2].isneginf().all()


def test_one_item_needs_one_beam(model):
    items, _ = trie_beam_search(
        model, *left_padded(PROMPTS), ItemTrie.from_sequences([[4, EOS]]), 2
    )
    assert items.tolist() == [[0, -1]] * 3
