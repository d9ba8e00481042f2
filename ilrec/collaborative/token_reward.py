"""Item probabilities -> token rewards along the trie (method.md, step 4).

At the prefix y_<t of the target's tokens, the reward of a next token v is the probability, given the prefix, that the collaborative
filter puts on items that go on with v:

    r_t(v) = sum of p_cf(i | u) over items below y_<t v  /  sum of p_cf(i | u) over items below y_<t
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ilrec.items.trie import ItemTrie


def token_rewards(item_probabilities_BI: Tensor, target_items: Sequence[int], trie: ItemTrie) -> tuple[Tensor, Tensor, Tensor]:
    """CSR rows (offsets int64 [N + 1], token_ids int64, values float32), on the CPU; `trie` is on the CPU too.

    One row per response token of each target, end token included, in the order of the batch: N rows. A row lists the tokens that can
    follow the prefix, and values that sum to 1. A prefix that the filter gives no probability at all is uniform.
    """
    start, end, offsets = (t.numpy() for t in (trie.node_start, trie.node_end, trie.child_offsets))
    leaf_probabilities_BI = item_probabilities_BI.double().numpy()[:, trie.leaf_items.numpy()]
    counts, tokens, values = [], [], []
    for row, target in enumerate(target_items):
        path = trie.item_paths[target].numpy()
        for node in path[path >= 0][:-1]:
            edges = slice(offsets[node], offsets[node + 1])
            children = slice(offsets[node] + 1, offsets[node + 1] + 1)  # edge e leads to node e + 1
            # Sums of segments, not differences of a running sum: a rare item's share must not drown in rounding.
            mass = np.add.reduceat(leaf_probabilities_BI[row, start[node]:end[node]], start[children] - start[node])
            counts.append(len(mass))
            tokens.append(trie.child_tokens[edges].numpy())
            values.append(mass / mass.sum() if mass.sum() > 0 else np.full(len(mass), 1 / len(mass)))
    return (torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(np.concatenate(values).astype(np.float32)))
