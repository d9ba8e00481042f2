"""Item probabilities -> token rewards along the trie of item tokens (arXiv 2602.17410; method.md,
step 4).

    r_t(v) = sum of p_cf(i | user) over items i that start with y_<t v / the same over items that
    start with y_<t

at each prefix y_<t of the target's response, the end token included: how the crowd would go on from
there.

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
    """CSR rewards, one row per response token: all tokens of target 0, then of target 1, ...

    item_probabilities_BI: p_cf, float, >= 0; rows need not sum to 1. target_items_B: item numbers.
    All on the CPU. Returns offsets_N1 int64, token_ids_E int64, values_E float32, on the CPU: row
    n, offsets_N1[n] : offsets_N1[n + 1], holds the tokens that may follow prefix n and their
    rewards, which sum to 1. A prefix that no probable item starts with gets equal rewards. Raises
    ValueError on a wrong shape and on negative or NaN probabilities.
    """
    mass_BI = np.asarray(item_probabilities_BI)
    targets_B = np.asarray(target_items_B, dtype=np.int64)
    if mass_BI.shape != (len(targets_B), trie.num_items):
        expected = (len(targets_B), trie.num_items)
        raise ValueError(f"item_probabilities_BI: expected shape {expected}, got {mass_BI.shape}")
    if not (mass_BI >= 0).all():
        raise ValueError("item_probabilities_BI: expected no negative and no NaN probability")
    rows_N, prefixes_N = _prefix_nodes(targets_B, trie)
    num_children_N, edges_E = _child_edges(prefixes_N, trie)
    # take: indexing by [:, items] would lay the columns out one after the other, and all that
    # follows reads rows.
    leaf_mass_BI = np.take(mass_BI, trie.leaf_items.numpy(), axis=1).astype(np.float64)
    mass_E = _mass_below(
        leaf_mass_BI,
        np.repeat(rows_N, num_children_N),
        edges_E + 1,
        np.repeat(prefixes_N == ROOT, num_children_N),
        trie,
    )
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
    """As token_rewards without a filter: the tokens that may follow each prefix, all with reward
    0."""
    _, prefixes_N = _prefix_nodes(np.asarray(target_items_B, dtype=np.int64), trie)
    num_children_N, edges_E = _child_edges(prefixes_N, trie)
    offsets_N1 = np.concatenate([[0], np.cumsum(num_children_N)])
    return (
        torch.from_numpy(offsets_N1),
        trie.child_tokens[torch.from_numpy(edges_E)],
        torch.zeros(len(edges_E)),
    )


def _child_edges(prefixes_N: np.ndarray, trie: ItemTrie) -> tuple[np.ndarray, np.ndarray]:
    """How many children each node has, and their edges in one array."""
    child_offsets = trie.child_offsets.numpy()
    num_children_N = child_offsets[prefixes_N + 1] - child_offsets[prefixes_N]
    return num_children_N, _ranges(child_offsets[prefixes_N], num_children_N)


def _prefix_nodes(targets_B: np.ndarray, trie: ItemTrie) -> tuple[np.ndarray, np.ndarray]:
    """For each response token: its target's row in the batch and the node of the prefix before
    it."""
    paths_BD = trie.item_paths.numpy()[targets_B]
    # The last node of a path is the leaf, where nothing follows: as many prefixes as there are
    # nodes after the root.
    has_next_BD = paths_BD[:, 1:] >= 0
    return np.nonzero(has_next_BD)[0], paths_BD[:, :-1][has_next_BD]


def _mass_below(
    leaf_mass_BI: np.ndarray,
    rows_E: np.ndarray,
    nodes_E: np.ndarray,
    is_first_E: np.ndarray,
    trie: ItemTrie,
) -> np.ndarray:
    """Sum of leaf_mass_BI[row] over the leaves below each node: float64 [E]. is_first_E: the root's
    children, a run of them per row.

    Segments are summed one by one. Differences of a running sum would be cheaper and lose what is
    small beside the sum. The root's children cover every leaf, in the same segments for each row:
    no list of leaves for them, which would be as large as leaf_mass_BI.
    """
    start_E, end_E = trie.node_start.numpy()[nodes_E], trie.node_end.numpy()[nodes_E]
    mass_E = np.empty(len(nodes_E))
    num_first = int(trie.child_offsets[ROOT + 1])
    mass_E[is_first_E] = np.add.reduceat(
        leaf_mass_BI, trie.node_start.numpy()[1 : num_first + 1], axis=1
    ).ravel()
    num_leaves_E = (end_E - start_E)[~is_first_E]
    leaves = _ranges((start_E + rows_E * leaf_mass_BI.shape[1])[~is_first_E], num_leaves_E)
    mass_E[~is_first_E] = np.add.reduceat(
        leaf_mass_BI.ravel()[leaves], np.cumsum(num_leaves_E) - num_leaves_E
    )
    return mass_E


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + count - 1 for each pair, in one array."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
