"""Item probabilities -> token rewards along the trie of item tokens (arXiv 2602.17410;
docs/method.md, token reward).

    r_t(v) = sum of p_cf(i | user) over the items i that start with y_<t v
             / the same sum over the items that start with y_<t

at each prefix y_<t of the target's response, which includes the end token. In words: with which
token would users like this one go on from here.

Shapes: B targets, I items, N response tokens of all targets, E children of the N prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ilrec.items.trie import ROOT, ItemTrie


def token_rewards(
    item_probabilities_BI: Tensor | np.ndarray,
    target_items_B: Sequence[int] | Tensor | np.ndarray,
    trie: ItemTrie,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards as a sparse (CSR) matrix with one row per response token: all tokens of target 0,
    then of target 1, and so on.

    item_probabilities_BI: p_cf, float, >= 0; rows need not sum to 1. target_items_B: item numbers.
    All on the CPU. Returns offsets_N1 int64, token_ids_E int64 and values_E float32, on the CPU.
    Row n is offsets_N1[n] : offsets_N1[n + 1] and holds the tokens that may follow prefix n and
    their rewards, which sum to 1. If no probable item starts with the prefix, they are equal.
    Raises ValueError on a wrong shape and on negative or NaN probabilities.
    """
    mass_BI = np.asarray(item_probabilities_BI)
    targets_B = np.asarray(target_items_B, dtype=np.int64)
    expected = (len(targets_B), trie.num_items)
    if mass_BI.shape != expected:
        raise ValueError(f"item_probabilities_BI: expected shape {expected}, got {mass_BI.shape}")
    if not (mass_BI >= 0).all():
        raise ValueError("item_probabilities_BI: expected no negative and no NaN probability")

    rows_N, prefixes_N = _prefix_nodes(targets_B, trie)
    num_children_N, edges_E = _child_edges(prefixes_N, trie)
    # np.take, because indexing by [:, items] lays the columns out one after the other, and all
    # that follows reads rows.
    leaf_mass_BI = np.take(mass_BI, trie.leaf_items.numpy(), axis=1).astype(np.float64)
    mass_E = _mass_below(
        leaf_mass_BI,
        rows_E=np.repeat(rows_N, num_children_N),
        nodes_E=edges_E + 1,
        is_first_E=np.repeat(prefixes_N == ROOT, num_children_N),
        trie=trie,
    )

    # Divided by the sum of each row, or 1 / number of children if that sum is 0.
    offsets_N1 = np.concatenate([[0], np.cumsum(num_children_N)])
    total_E = np.repeat(np.add.reduceat(mass_E, offsets_N1[:-1]), num_children_N)
    equal_E = 1 / np.repeat(num_children_N, num_children_N)
    values_E = np.divide(mass_E, total_E, out=equal_E, where=total_E > 0)
    return (
        torch.from_numpy(offsets_N1),
        trie.child_tokens[torch.from_numpy(edges_E)],
        torch.from_numpy(values_E.astype(np.float32)),
    )


def continuations(
    target_items_B: Sequence[int] | np.ndarray, trie: ItemTrie
) -> tuple[Tensor, Tensor, Tensor]:
    """What token_rewards returns, without a filter: the tokens that may follow each prefix, all
    with the reward 0."""
    _, prefixes_N = _prefix_nodes(np.asarray(target_items_B, dtype=np.int64), trie)
    num_children_N, edges_E = _child_edges(prefixes_N, trie)
    offsets_N1 = np.concatenate([[0], np.cumsum(num_children_N)])
    return (
        torch.from_numpy(offsets_N1),
        trie.child_tokens[torch.from_numpy(edges_E)],
        torch.zeros(len(edges_E)),
    )


def _prefix_nodes(targets_B: np.ndarray, trie: ItemTrie) -> tuple[np.ndarray, np.ndarray]:
    """For each response token the row of its target, and the node of the prefix before it."""
    paths_BD = trie.item_paths.numpy()[targets_B]
    # The last node of a path is the leaf, which nothing follows. Every other node of the path is
    # the prefix before one token.
    has_next_BD = paths_BD[:, 1:] >= 0
    rows_N, _ = np.nonzero(has_next_BD)
    return rows_N, paths_BD[:, :-1][has_next_BD]


def _child_edges(prefixes_N: np.ndarray, trie: ItemTrie) -> tuple[np.ndarray, np.ndarray]:
    """How many children each node has, and the edges to them in one array."""
    child_offsets = trie.child_offsets.numpy()
    begin_N = child_offsets[prefixes_N]
    num_children_N = child_offsets[prefixes_N + 1] - begin_N
    return num_children_N, _ranges(begin_N, num_children_N)


def _mass_below(
    leaf_mass_BI: np.ndarray,
    rows_E: np.ndarray,
    nodes_E: np.ndarray,
    is_first_E: np.ndarray,
    trie: ItemTrie,
) -> np.ndarray:
    """float64 [E]: for each node the sum of leaf_mass_BI[row] over the leaves below it.

    is_first_E: whether the node is a child of the root; each row has all of these side by side.
    Segments are summed one by one. Differences of a running sum would be cheaper, but they lose
    what is small beside the sum.
    """
    node_start, node_end = trie.node_start.numpy(), trie.node_end.numpy()
    mass_E = np.empty(len(nodes_E))

    # The root's children cover every leaf, in the same segments for each row. So they need no list
    # of leaves, which would be as large as leaf_mass_BI.
    num_first = int(trie.child_offsets[ROOT + 1])
    first_starts = node_start[1 : num_first + 1]
    mass_E[is_first_E] = np.add.reduceat(leaf_mass_BI, first_starts, axis=1).ravel()

    # All other nodes have few leaves, and the leaves of all of them are listed.
    nodes = nodes_E[~is_first_E]
    row_begins = rows_E[~is_first_E] * leaf_mass_BI.shape[1]
    num_leaves = node_end[nodes] - node_start[nodes]
    leaves = _ranges(row_begins + node_start[nodes], num_leaves)
    segments = np.cumsum(num_leaves) - num_leaves
    mass_E[~is_first_E] = np.add.reduceat(leaf_mass_BI.ravel()[leaves], segments)
    return mass_E


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + count - 1 for each pair, in one array."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
