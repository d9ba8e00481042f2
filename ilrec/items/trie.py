"""ItemTrie: which tokens may follow a prefix so that it still spells an item, and which items begin
with the prefix.

Nodes are numbered breadth-first from ROOT; the children of a node are consecutive and sorted by
token. Every node but the root is the child of exactly one edge, so that edge e leads to node e + 1
and no table of children is needed.

Shapes: I items, D tokens of the longest item, N pairs of a row and an item of its history.
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
    """All tensors are int64 and on one device.

    child_offsets [nodes + 1], child_tokens [nodes - 1]: the edges of node j are child_offsets[j] :
        child_offsets[j + 1], and each has the token of its child.
    node_start, node_end [nodes]: the items below node j are leaf_items[node_start[j] :
        node_end[j]].
    leaf_items [I]: the items in trie order. Items with the same tokens share a leaf, in ascending
        order.
    item_paths [I, D + 1]: each item's nodes from root to leaf, padded with -1.
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
        """D, the number of tokens of the longest item."""
        return self.item_paths.shape[1] - 1

    def to(self, device: torch.device | str) -> ItemTrie:
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return ItemTrie(**moved)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """nodes int64 [...] -> tokens, child nodes and mask, each [..., C]. C is the largest number
        of children among them.

        Where the mask is False there is no child; token and node are then 0. A leaf has no child.
        """
        # A rectangle as wide as the largest number of children; the mask says what is real.
        begin = self.child_offsets[nodes]
        end = self.child_offsets[nodes + 1]
        width = int((end - begin).max()) if nodes.numel() else 0
        edges = begin[..., None] + torch.arange(width, device=nodes.device)
        mask = edges < end[..., None]
        # Places beyond a node's children must not read beyond the end of child_tokens.
        edges = edges.masked_fill(~mask, 0)
        tokens = self.child_tokens[edges].masked_fill(~mask, 0)
        child_nodes = (edges + 1).masked_fill(~mask, 0)
        return tokens, child_nodes, mask

    def exhausted(self, histories: Sequence[np.ndarray | Sequence[int]]) -> Tensor:
        """The nodes of each row below which every item is in the row's history.

        Returns pairs of row and node as row * num_nodes + node: int64, sorted.
        """
        device = self.leaf_items.device
        distinct = [np.unique(np.asarray(history, dtype=np.int64)) for history in histories]
        lengths = [len(items) for items in distinct]
        rows_N = torch.from_numpy(np.repeat(np.arange(len(distinct)), lengths)).to(device)
        items_N = np.concatenate([np.empty(0, np.int64), *distinct])
        paths_ND = self.item_paths[torch.from_numpy(items_N).to(device)]

        # Each item of a history counts once for every node on its path. A node is exhausted if it
        # is counted as often as it has items.
        is_node_ND = paths_ND >= 0
        keys_ND = rows_N[:, None] * self.num_nodes + paths_ND
        keys, counts = torch.unique(keys_ND[is_node_ND], return_counts=True)
        nodes = keys % self.num_nodes
        num_items_below = (self.node_end - self.node_start)[nodes]
        return keys[counts == num_items_below]

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int] | np.ndarray]) -> ItemTrie:
        """The trie in which item i is spelled by sequences[i], its response tokens with the end
        token.

        Raises InputError if a sequence is empty or is the beginning of another.
        """
        tokens_ID = _padded(sequences)
        # np.lexsort takes the most important column last. It is stable: items with the same tokens
        # stay in ascending order.
        order = np.lexsort(tokens_ID.T[::-1])
        sorted_ID = tokens_ID[order]
        _check_no_prefix(sorted_ID, order)
        nodes = _number_nodes(sorted_ID)

        # From the order of sorted rows back to the order of items.
        num_children = np.bincount(nodes.edge_parents, minlength=len(nodes.start))
        item_paths = np.empty_like(nodes.paths)
        item_paths[order] = nodes.paths
        return cls(
            child_offsets=_int64(np.concatenate([[0], np.cumsum(num_children)])),
            child_tokens=_int64(nodes.edge_tokens),
            node_start=_int64(nodes.start),
            node_end=_int64(nodes.end),
            leaf_items=_int64(order),
            item_paths=_int64(item_paths),
        )


def _int64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _padded(sequences: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """int64 [I, D], padded with -1, which sorts before every token."""
    if len(sequences) == 0:
        raise InputError("item trie: no items; expected at least one item in the catalogue")
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    if not lengths.all():
        raise InputError(
            f"item trie: item {int(np.argmin(lengths))} has no tokens; "
            "give it a title or a semantic ID"
        )
    tokens_ID = np.full((len(sequences), lengths.max()), -1, dtype=np.int64)
    is_token_ID = np.arange(tokens_ID.shape[1]) < lengths[:, None]
    tokens_ID[is_token_ID] = np.concatenate([np.asarray(row, np.int64) for row in sequences])
    return tokens_ID


@dataclass(frozen=True)
class _Nodes:
    """All nodes, numbered breadth-first, and the edges to all of them but the root.

    paths [I, D + 1]: of the sorted rows. edge_tokens, edge_parents [nodes - 1]. start, end [nodes]:
    the sorted rows below each node.
    """

    paths: np.ndarray
    edge_tokens: np.ndarray
    edge_parents: np.ndarray
    start: np.ndarray
    end: np.ndarray


def _number_nodes(sorted_ID: np.ndarray) -> _Nodes:
    """Number the nodes of sorted rows, level by level."""
    num_items, depth = sorted_ID.shape
    paths = np.full((num_items, depth + 1), -1, dtype=np.int64)
    paths[:, 0] = ROOT
    tokens, parents = [], []
    starts, ends = [np.array([0])], [np.array([num_items])]
    num_nodes = 1

    # Whether the prefix of a row, up to this level, differs from that of the row before.
    differs_I = np.zeros(num_items, dtype=bool)
    differs_I[0] = True
    for level in range(depth):
        column = sorted_ID[:, level]
        differs_I[1:] |= column[1:] != column[:-1]

        # A node is new where the prefix changes and still has a token.
        has_token_I = column >= 0
        is_new_I = differs_I & has_token_I
        first = np.flatnonzero(is_new_I)
        node_I = num_nodes - 1 + np.cumsum(is_new_I)
        paths[has_token_I, level + 1] = node_I[has_token_I]
        tokens.append(column[first])
        parents.append(paths[first, level])

        # A node's rows end where the prefix changes next, to a longer or to a finished one.
        boundaries = np.append(np.flatnonzero(differs_I), num_items)
        starts.append(first)
        ends.append(boundaries[np.searchsorted(boundaries, first, side="right")])
        num_nodes += len(first)
    return _Nodes(
        paths=paths,
        edge_tokens=np.concatenate(tokens),
        edge_parents=np.concatenate(parents),
        start=np.concatenate(starts),
        end=np.concatenate(ends),
    )


def _check_no_prefix(sorted_ID: np.ndarray, order: np.ndarray) -> None:
    """Raises InputError if one row is the beginning of another."""
    # In sorted order such a row stands right before one that it begins: where it has a token, both
    # have the same one.
    before, after = sorted_ID[:-1], sorted_ID[1:]
    agrees = ((before == after) | (before < 0)).all(axis=1)
    begins = agrees & (before != after).any(axis=1)
    if begins.any():
        row = int(np.argmax(begins))
        raise InputError(
            f"item trie: the tokens of item {order[row]} begin those of item {order[row + 1]}; "
            "end every item with the end token"
        )
