"""ItemTrie: numbers and ranges by hand, children against a brute-force prefix search, refusals."""

import random

import numpy as np
import pytest
import torch

from ilrec.errors import InputError
from ilrec.items.trie import ItemTrie

EOS = 9
SEQUENCES = [[5, 1, EOS], [5, 2, EOS], [3, EOS], [5, 1, EOS]]


def items_below(trie: ItemTrie, node: int) -> set[int]:
    return set(trie.leaf_items[trie.node_start[node] : trie.node_end[node]].tolist())


def test_by_hand():
    """The sorted rows are [3 9] (item 2), [5 1 9] (items 0 and 3) and [5 2 9] (item 1).

    Breadth-first: the root is 0; [3] is 1, [5] is 2; [3 9] is 3, [5 1] is 4, [5 2] is 5; [5 1 9] is
    6, [5 2 9] is 7.
    """
    trie = ItemTrie.from_sequences(SEQUENCES)
    assert (trie.num_items, trie.num_nodes, trie.max_depth) == (4, 8, 3)
    assert trie.child_tokens.tolist() == [3, 5, EOS, 1, 2, EOS, EOS]
    assert trie.child_offsets.tolist() == [0, 2, 3, 5, 5, 6, 7, 7, 7]
    assert trie.leaf_items.tolist() == [2, 0, 3, 1]
    assert trie.item_paths.tolist() == [[0, 2, 4, 6], [0, 2, 5, 7], [0, 1, 3, -1], [0, 2, 4, 6]]
    assert trie.node_start.tolist() == [0, 0, 1, 0, 1, 3, 1, 3]
    assert trie.node_end.tolist() == [4, 1, 4, 1, 3, 4, 3, 4]


def test_children_are_padded_if_there_are_fewer():
    """Node 1 has one child (EOS -> 3), node 2 has two (1 -> 4, 2 -> 5), leaf 6 has none."""
    tokens, nodes, mask = ItemTrie.from_sequences(SEQUENCES).children(torch.tensor([[1, 2, 6]]))
    assert tokens.tolist() == [[[EOS, 0], [1, 2], [0, 0]]]
    assert nodes.tolist() == [[[3, 0], [4, 5], [0, 0]]]
    assert mask.tolist() == [[[True, False], [True, True], [False, False]]]


def test_leaves_have_no_children():
    tokens, _, mask = ItemTrie.from_sequences(SEQUENCES).children(torch.tensor([6, 7]))
    assert tokens.shape == mask.shape == (2, 0)


def test_against_brute_force():
    """200 random items of 1 to 4 tokens."""
    rng = random.Random(0)
    sequences = []
    for _ in range(200):
        length = rng.randrange(1, 5)
        sequences.append([rng.randrange(4) for _ in range(length)] + [EOS])
    trie = ItemTrie.from_sequences(sequences)
    for item, sequence in enumerate(sequences):
        for depth in range(len(sequence)):
            prefix = sequence[:depth]
            below = {i for i, other in enumerate(sequences) if other[:depth] == prefix}
            node = trie.item_paths[item, depth]
            assert items_below(trie, node) == below

            tokens, nodes, _ = trie.children(node)
            assert tokens.tolist() == sorted({sequences[i][depth] for i in below})
            child = nodes[tokens.tolist().index(sequence[depth])]
            assert trie.item_paths[item, depth + 1] == child


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no items"),
        ([[1, EOS], []], "item 1 has no tokens"),
        ([[1, 2], [1, 2, EOS]], "tokens of item 0 begin those of item 1"),
    ],
)
def test_refusals(sequences, message):
    with pytest.raises(InputError, match=message):
        ItemTrie.from_sequences(sequences)


def test_exhausted_against_brute_force():
    """30 items of 3 tokens, and histories of no item, of some, and of nearly all."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 3, 3).tolist() for _ in range(30)]
    trie = ItemTrie.from_sequences(sequences)
    histories = [rng.choice(30, size, replace=True) for size in (0, 5, 25, 60)]
    expected = []
    for row, history in enumerate(histories):
        for node in range(trie.num_nodes):
            if items_below(trie, node) <= set(history.tolist()):
                expected.append(row * trie.num_nodes + node)
    assert len(expected) > 10
    assert trie.exhausted(histories).tolist() == expected
