"""ItemTrie: which tokens may follow a prefix so that an item is still spelled, and which items lie
below it.

Nodes are numbered breadth-first from ROOT; the children of a node are consecutive and sorted by
token. Every other node is the child of exactly one edge, so that edge e leads to node e + 1 and no
child table is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ilrec.errors import InputError

ROOT = 0


@dataclass(frozen=True)
class ItemTrie:
    """All int64, on one device. D = max_depth, the longest item in tokens.

    child_offsets [nodes + 1], child_tokens [nodes - 1]: the edges of node j are child_offsets[j] :
    child_offsets[j + 1]. node_start, node_end [nodes]: the items below node j are
    leaf_items[node_start[j] : node_end[j]]. leaf_items [I]: items in trie order; items spelled
    alike share a leaf, in ascending order. item_paths [I, D + 1]: an item's nodes from root to
    leaf, padded with -1.
    """

    child_offsets: Tensor
    child_tokens: Tensor
    node_start: Tensor
    node_end: Tensor
    leaf_items: Tensor
    item_paths: Tensor

    @property
    def num_items(self) -> int:
        return len(self.leaf_items)

    @property
    def num_nodes(self) -> int:
        return len(self.node_start)

    @property
    def max_depth(self) -> int:
        return self.item_paths.shape[1] - 1

    def to(self, device: torch.device | str) -> ItemTrie:
        return ItemTrie(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """nodes int64 [...] -> tokens, child nodes and mask, each [..., C], C the largest number of
        children among them.

        Where the mask is False there is no child (token 0, node 0): a leaf has none at all.
        """
        begin, end = self.child_offsets[nodes], self.child_offsets[nodes + 1]
        width = int((end - begin).max()) if nodes.numel() else 0
        edges = begin[..., None] + torch.arange(width, device=nodes.device)
        mask = edges < end[..., None]
        edges = edges.masked_fill(~mask, 0)
        return (
            self.child_tokens[edges].masked_fill(~mask, 0),
            (edges + 1).masked_fill(~mask, 0),
            mask,
        )

    def exhausted(self, histories: Sequence[np.ndarray | Sequence[int]]) -> Tensor:
        """(row, node) pairs, as row * num_nodes + node, below which every item is in the row's
        history: sorted int64 [E]."""
        distinct = [np.unique(np.asarray(history, dtype=np.int64)) for history in histories]
        rows_N = torch.from_numpy(
            np.repeat(np.arange(len(distinct)), [len(items) for items in distinct])
        ).to(self.leaf_items.device)
        items_N = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *distinct])).to(
            self.leaf_items.device
        )
        paths_ND = self.item_paths[items_N]
        keys, counts = torch.unique(
            (rows_N[:, None] * self.num_nodes + paths_ND)[paths_ND >= 0], return_counts=True
        )
        nodes = keys % self.num_nodes
        return keys[counts == (self.node_end - self.node_start)[nodes]]

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int] | np.ndarray]) -> ItemTrie:
        """Item i -> its response tokens, end token included. InputError when one is empty or begins
        another."""
        tokens_ID = _padded(sequences)
        order = np.lexsort(tokens_ID.T[::-1])  # stable: items spelled alike stay in ascending order
        sorted_ID = tokens_ID[order]
        paths, child_tokens, parents, start, end = _number_nodes(sorted_ID)
        _check_no_prefix(sorted_ID, order)
        counts = np.bincount(parents, minlength=len(start))
        item_paths = np.empty_like(paths)
        item_paths[order] = paths
        arrays = (
            np.concatenate([[0], np.cumsum(counts)]),
            child_tokens,
            start,
            end,
            order,
            item_paths,
        )
        return cls(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)) for a in arrays))


def _padded(sequences: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """[I, D], padded with -1, which sorts before every token."""
    if len(sequences) == 0:
        raise InputError("item trie: no items; expected at least one item in the catalogue")
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    if not lengths.all():
        raise InputError(
            f"item trie: item {int(np.argmin(lengths))} has no tokens; give it a title or a semantic ID"
        )
    tokens_ID = np.full((len(sequences), lengths.max()), -1, dtype=np.int64)
    tokens_ID[np.arange(tokens_ID.shape[1]) < lengths[:, None]] = np.concatenate(
        [np.asarray(s, np.int64) for s in sequences]
    )
    return tokens_ID


def _number_nodes(sorted_ID: np.ndarray) -> tuple[np.ndarray, ...]:
    """Breadth-first numbers from sorted rows: paths [I, D + 1], edge tokens, edge parents, item
    range of each node."""
    num_items, depth = sorted_ID.shape
    paths = np.full((num_items, depth + 1), -1, dtype=np.int64)
    paths[:, 0] = ROOT
    tokens, parents, start, end = [], [], [np.array([0])], [np.array([num_items])]
    num_nodes, begins = (
        1,
        np.zeros(num_items, dtype=bool),
    )  # begins: this row's prefix differs from the row before
    begins[0] = True
    for level in range(depth):
        column = sorted_ID[:, level]
        begins[1:] |= column[1:] != column[:-1]
        present = column >= 0
        first = np.flatnonzero(begins & present)
        paths[present, level + 1] = (num_nodes - 1 + np.cumsum(begins & present))[present]
        tokens.append(column[first])
        parents.append(paths[first, level])
        # A node ends where the next begins, be it longer or already finished.
        boundaries = np.append(np.flatnonzero(begins), num_items)
        start.append(first)
        end.append(boundaries[np.searchsorted(boundaries, first, side="right")])
        num_nodes += len(first)
    return (
        paths,
        np.concatenate(tokens),
        np.concatenate(parents),
        np.concatenate(start),
        np.concatenate(end),
    )


def _check_no_prefix(sorted_ID: np.ndarray, order: np.ndarray) -> None:
    """In sorted order a proper prefix stands right before a row that it begins."""
    before, after = sorted_ID[:-1], sorted_ID[1:]
    begins = ((before == after) | (before < 0)).all(axis=1) & (before != after).any(axis=1)
    if begins.any():
        row = int(np.argmax(begins))
        raise InputError(
            f"item trie: the tokens of item {order[row]} begin those of item {order[row + 1]}; "
            "end every item with the end token"
        )
