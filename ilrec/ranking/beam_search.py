"""Trie-constrained beam search: the best items of the full catalogue for a batch of users.

An item's score is the sum of the log-probabilities of its tokens, end token included, each under
the model's full vocabulary. There is no length normalisation. The model is called once per level of
the trie, for all users and beams together; no Python loop runs over tokens or beams.

Shapes: B users, K beams, C children, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from ilrec.items.trie import ROOT, ItemTrie

# transformers' names for the states of a linear-attention layer: {number: [B, ...]}.
LINEAR_STATES = ("conv_states", "recurrent_states")


@dataclass
class Beams:
    """The beams of each user, finished and unfinished, best first.

    nodes_BK: the trie node that each beam has reached. scores_BK: its score so far. A dead beam has
    node ROOT and score -inf: there were fewer beams than asked for.
    """

    nodes_BK: Tensor
    scores_BK: Tensor


class BeamLayer(DynamicLayer):
    """Keys and values of one attention layer for B * K beams, allocated once for all steps.

    All beams of a user share the columns of the prompt, and a beam never changes its user. So
    appending and reordering touch the generated columns only. Copying whole caches at every step
    took 70 percent of a search's time.
    """

    def __init__(self, prompt: DynamicLayer, num_beams: int, num_steps: int) -> None:
        """prompt: the layer after the prompts of B users. num_steps: tokens that follow."""
        super().__init__()
        assert prompt.keys is not None and prompt.values is not None
        self.lazy_initialization(prompt.keys, prompt.values)
        self.num_prompt_tokens = self.num_tokens = prompt.keys.shape[-2]
        self.all_keys = _with_room(prompt.keys, num_beams, num_steps)
        self.all_values = _with_room(prompt.values, num_beams, num_steps)
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.num_tokens
        self.num_tokens += key_states.shape[-2]
        self.all_keys[..., begin : self.num_tokens, :] = key_states
        self.all_values[..., begin : self.num_tokens, :] = value_states
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for states in (self.all_keys, self.all_values):
            generated = states[..., self.num_prompt_tokens : self.num_tokens, :]
            generated.copy_(generated.index_select(0, beam_idx))

    def _show(self) -> tuple[Tensor, Tensor]:
        """The columns that are filled, as views. transformers reads them from these two fields."""
        self.keys = self.all_keys[..., : self.num_tokens, :]
        self.values = self.all_values[..., : self.num_tokens, :]
        return self.keys, self.values


def _with_room(states: Tensor, num_beams: int, num_steps: int) -> Tensor:
    """[B, heads, T, D] -> [B * K, heads, T + steps, D]: each user's prompt K times, then room."""
    num_users, num_heads, num_tokens, size = states.shape
    room = states.new_empty(num_users, num_beams, num_heads, num_tokens + num_steps, size)
    room[..., :num_tokens, :] = states[:, None]
    return room.flatten(0, 1)


def _expand_cache(cache: Cache, num_beams: int, num_steps: int) -> None:
    """Turn each user's cache into one for num_beams beams, in place."""
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[index] = BeamLayer(layer, num_beams, num_steps)
            continue
        # Linear attention has one state of a fixed size, and beams can share no part of it.
        # transformers can reorder such a state but not repeat it.
        for name in LINEAR_STATES:
            states = getattr(layer, name, {})
            for number, state in states.items():
                if state is not None:
                    states[number] = state.repeat_interleave(num_beams, dim=0)
        # Other kinds (a sliding window) have a way of their own, which copies everything.
        if hasattr(layer, "batch_repeat_interleave"):
            layer.batch_repeat_interleave(num_beams)


# Not inference_mode: under ZeRO-3 a model in training may keep what is gathered here, and a
# backward pass refuses tensors that were made in that mode.
@torch.no_grad()
def trie_beam_search(
    model: Any,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    trie: ItemTrie,
    num_beams: int,
    excluded: Sequence[np.ndarray | Sequence[int]] | None = None,
    synced_ranks: bool = False,
) -> tuple[Tensor, Tensor]:
    """The num_beams best items per user, best first.

    model: a Hugging Face causal LM. trie: on its device.
    input_ids_BT, attention_mask_BT: LEFT-padded prompts.
    excluded: per user, items that take no beam. A leaf that several items share is left out only if
        all of them are excluded.
    synced_ranks: every rank goes on until all of them are done, because the model is sharded and
        its calls are collective (ZeRO-3). All ranks then call this equally often.

    Returns items int64 [B, K] and scores float32 [B, K] (float64 for a float64 model). If the
    catalogue has fewer items than num_beams, the rest is item -1 with score -inf. Items that share
    a leaf follow each other in ascending order with the same score.
    """
    num_users = len(input_ids_BT)
    closed = trie.exhausted(excluded) if excluded is not None else None

    # The prompts: one beam per user, at the root. Their logits already decide the first token.
    positions_BT = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)
    outputs = model(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=positions_BT,
        use_cache=True,
        logits_to_keep=1,
    )
    logits_BV = outputs.logits[:, -1]
    nodes_B1 = torch.full((num_users, 1), ROOT, dtype=torch.int64, device=input_ids_BT.device)
    scores_B1 = logits_BV.new_zeros(num_users, 1, dtype=_score_dtype(logits_BV))
    beams, parents_BK, tokens_BK = _extend(
        Beams(nodes_B1, scores_B1), logits_BV, trie, num_beams, closed
    )

    # From here on each user has K rows. The cache gets room for the tokens that are left.
    cache = outputs.past_key_values
    _expand_cache(cache, num_beams, trie.max_depth - 1)
    attention_mask = attention_mask_BT.repeat_interleave(num_beams, dim=0)
    position = positions_BT[:, -1:].repeat_interleave(num_beams, dim=0)
    first_row_B1 = torch.arange(num_users, device=nodes_B1.device)[:, None] * num_beams

    # One level of the trie in each turn, until no beam can be extended.
    while not _is_done(trie, beams.nodes_BK, synced_ranks):
        cache.reorder_cache((first_row_B1 + parents_BK).reshape(-1))
        attention_mask = pad(attention_mask, (0, 1), value=1)
        position = position + 1
        outputs = model(
            input_ids=tokens_BK.reshape(-1, 1),
            attention_mask=attention_mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        beams, parents_BK, tokens_BK = _extend(
            beams, outputs.logits[:, -1], trie, num_beams, closed
        )
    return _expand_items(beams, trie, num_beams)


def _score_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _is_done(trie: ItemTrie, nodes_BK: Tensor, synced_ranks: bool) -> bool:
    """Whether no beam can be extended, with synced_ranks on any rank."""
    is_done = _is_leaf(trie, nodes_BK).all().to(torch.int32)
    if synced_ranks:
        dist.all_reduce(is_done, op=dist.ReduceOp.MIN)
    return bool(is_done)


def _is_leaf(trie: ItemTrie, nodes_BK: Tensor) -> Tensor:
    """Whether a node has no children. Dead beams (ROOT) count as leaves: nothing extends them."""
    return _has_no_child(trie, nodes_BK) | (nodes_BK == ROOT)


def _has_no_child(trie: ItemTrie, nodes_BK: Tensor) -> Tensor:
    return trie.child_offsets[nodes_BK] == trie.child_offsets[nodes_BK + 1]


def _extend(
    beams: Beams, logits: Tensor, trie: ItemTrie, num_beams: int, closed: Tensor | None
) -> tuple[Beams, Tensor, Tensor]:
    """One level down: the best num_beams among all children of all beams and the finished beams.

    logits: [B * K', V] for the K' beams so far. closed: children that are left out, as
    ItemTrie.exhausted gives them. Returns the new beams, the beam that each came from, and the
    token that it took, both int64 [B, K].
    """
    num_users, width = beams.nodes_BK.shape
    logits_BKV = logits.to(beams.scores_BK.dtype).view(num_users, width, -1)

    # The score of every child. Only tokens of the trie are looked at, so no other token can win.
    tokens_BKC, nodes_BKC, is_child_BKC = trie.children(beams.nodes_BK)
    if closed is not None and len(closed):
        is_child_BKC &= ~_is_closed(nodes_BKC, closed, trie.num_nodes)
    logps_BKC = logits_BKV.gather(2, tokens_BKC) - logits_BKV.logsumexp(-1, keepdim=True)
    scores_BKC = (beams.scores_BK[..., None] + logps_BKC).masked_fill(~is_child_BKC, -torch.inf)

    # A finished beam competes as it is, as one more child of itself. It takes no token.
    is_finished_BK = _has_no_child(trie, beams.nodes_BK)
    own_scores_BK1 = beams.scores_BK.masked_fill(~is_finished_BK, -torch.inf)[..., None]
    scores = torch.cat([scores_BKC, own_scores_BK1], dim=2).flatten(1)
    nodes = torch.cat([nodes_BKC, beams.nodes_BK[..., None]], dim=2).flatten(1)
    tokens = pad(tokens_BKC, (0, 1)).flatten(1)

    # The best of each user. Where there are fewer than K, dead beams fill the rest.
    missing = max(0, num_beams - scores.shape[1])
    best = scores.topk(num_beams - missing, dim=1)
    chosen_BK = pad(best.indices, (0, missing))
    scores_BK = pad(best.values, (0, missing), value=-torch.inf)
    nodes_BK = nodes.gather(1, chosen_BK).masked_fill(scores_BK.isneginf(), ROOT)
    parents_BK = chosen_BK // (tokens_BKC.shape[2] + 1)
    return Beams(nodes_BK, scores_BK), parents_BK, tokens.gather(1, chosen_BK)


def _is_closed(nodes_BKC: Tensor, closed: Tensor, num_nodes: int) -> Tensor:
    """Whether a child is among the (user, node) pairs in `closed`, sorted int64 [E].

    A pair is written as user * num_nodes + node.
    """
    users_B11 = torch.arange(len(nodes_BKC), device=nodes_BKC.device)[:, None, None]
    keys_BKC = nodes_BKC + num_nodes * users_B11
    places_BKC = torch.searchsorted(closed, keys_BKC).clamp(max=len(closed) - 1)
    return closed[places_BKC] == keys_BKC


def _expand_items(beams: Beams, trie: ItemTrie, num_beams: int) -> tuple[Tensor, Tensor]:
    """Leaves -> items: every item of each leaf, in order, cut at num_beams. [B, K] each."""
    is_alive_BK = ~beams.scores_BK.isneginf()
    counts_BK = (trie.node_end - trie.node_start)[beams.nodes_BK] * is_alive_BK
    ends_BK = counts_BK.cumsum(1)

    # Place j of the result belongs to the first beam whose items end after j.
    num_users = len(ends_BK)
    places_BK = torch.arange(num_beams, device=ends_BK.device).expand(num_users, -1).contiguous()
    beam_BK = torch.searchsorted(ends_BK, places_BK, right=True)
    is_filled_BK = beam_BK < num_beams
    beam_BK = beam_BK.clamp(max=num_beams - 1)

    offset_BK = places_BK - (ends_BK - counts_BK).gather(1, beam_BK)
    leaf_BK = trie.node_start[beams.nodes_BK.gather(1, beam_BK)] + offset_BK
    items_BK = trie.leaf_items[leaf_BK.masked_fill(~is_filled_BK, 0)]
    items_BK = items_BK.masked_fill(~is_filled_BK, -1)
    scores_BK = beams.scores_BK.gather(1, beam_BK).masked_fill(~is_filled_BK, -torch.inf)
    return items_BK, scores_BK
