"""Trie-constrained beam search: the best items of the full catalogue for a batch of users.

The score of an item is the sum of the log-probabilities of its tokens, end token included, each
under the model's full vocabulary; no length normalisation. One model call per trie level for all
users and beams; no Python per token or beam.

Shapes: B users, K beams, C children, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ilrec.items.trie import ItemTrie

# What transformers calls the states of a linear-attention layer: {number: [B, ...]}.
LINEAR_STATES = ("conv_states", "recurrent_states")


@dataclass
class Beams:
    """Unfinished and finished hypotheses. node 0 with score -inf is a beam that never came to
    life."""

    nodes_BK: Tensor
    scores_BK: Tensor


class BeamLayer(DynamicLayer):
    """Keys and values of one attention layer for B * K beams, allocated once for all steps.

    The prompt's columns are the same for all beams of a user, and beams never change users:
    appending and reordering touch the generated columns only. Copying whole caches at every step
    took 70 percent of a search's time.
    """

    def __init__(self, prompt: DynamicLayer, num_beams: int, num_steps: int) -> None:
        super().__init__()
        assert prompt.keys is not None and prompt.values is not None
        self.lazy_initialization(prompt.keys, prompt.values)
        self.num_prompt_tokens = self.num_tokens = prompt.keys.shape[-2]
        self.all_keys = _room(prompt.keys, num_beams, num_steps)
        self.all_values = _room(prompt.values, num_beams, num_steps)
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin, self.num_tokens = self.num_tokens, self.num_tokens + key_states.shape[-2]
        self.all_keys[..., begin : self.num_tokens, :] = key_states
        self.all_values[..., begin : self.num_tokens, :] = value_states
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for states in (self.all_keys, self.all_values):
            generated = states[..., self.num_prompt_tokens : self.num_tokens, :]
            generated.copy_(generated.index_select(0, beam_idx))

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (
            self.all_keys[..., : self.num_tokens, :],
            self.all_values[..., : self.num_tokens, :],
        )
        return self.keys, self.values


def _room(states: Tensor, num_beams: int, num_steps: int) -> Tensor:
    """[B, heads, T, D] -> [B * K, heads, T + steps, D]: each user's prompt K times, then room."""
    num_users, num_heads, num_tokens, size = states.shape
    room = states.new_empty(num_users, num_beams, num_heads, num_tokens + num_steps, size)
    room[..., :num_tokens, :] = states[:, None]
    return room.flatten(0, 1)


def _expand_cache(cache: Cache, num_beams: int, num_steps: int) -> None:
    """Each user's cache for num_beams beams. Other kinds of layers (a sliding window) are copied as
    they know how to.

    Linear attention has one state of a fixed size, which beams share no part of; transformers
    reorders it, and cannot repeat it.
    """
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[index] = BeamLayer(layer, num_beams, num_steps)
            continue
        for states in (getattr(layer, name, {}) for name in LINEAR_STATES):
            states.update(
                {
                    number: _repeat(state, num_beams)
                    for number, state in states.items()
                    if state is not None
                }
            )
        if hasattr(layer, "batch_repeat_interleave"):
            layer.batch_repeat_interleave(num_beams)


def _repeat(states: Tensor, num_beams: int) -> Tensor:
    return states.repeat_interleave(num_beams, dim=0)


@torch.inference_mode()
def trie_beam_search(
    model: Any,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    trie: ItemTrie,
    num_beams: int,
    excluded: Sequence[np.ndarray | Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The num_beams best items per user, best first: items int64 [B, K], scores float32 [B, K]
    (float64 for such a model).

    input_ids_BT, attention_mask_BT: LEFT-padded prompts. Where the catalogue has fewer items than
    num_beams, the rest is item -1 with score -inf. Items that share a leaf follow each other in
    ascending order with the same score. `model` is a Hugging Face causal LM; `trie` lies on its
    device. excluded: per user, items that take no beam; of items that share a leaf all or none.
    """
    num_users = len(input_ids_BT)
    closed = trie.exhausted(excluded) if excluded is not None else None
    positions_BT = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)
    outputs = model(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=positions_BT,
        use_cache=True,
        logits_to_keep=1,
    )
    nodes_B1 = torch.zeros(num_users, 1, dtype=torch.int64, device=input_ids_BT.device)
    beams = Beams(
        nodes_B1, outputs.logits.new_zeros(num_users, 1, dtype=_score_dtype(outputs.logits))
    )
    beams, parents_BK, tokens_BK = _extend(beams, outputs.logits[:, -1], trie, num_beams, closed)
    cache = outputs.past_key_values
    _expand_cache(
        cache, num_beams, trie.max_depth - 1
    )  # the prompt's own logits made the first step
    attention_mask = attention_mask_BT.repeat_interleave(num_beams, dim=0)
    position = positions_BT[:, -1:].repeat_interleave(num_beams, dim=0)
    while not bool(_is_leaf(trie, beams.nodes_BK).all()):
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
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
        rows_B1 = torch.arange(num_users, device=parents_BK.device)[:, None] * num_beams
        cache.reorder_cache((rows_B1 + parents_BK).reshape(-1))
    return _expand_items(beams, trie, num_beams)


def _score_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _is_leaf(trie: ItemTrie, nodes_BK: Tensor) -> Tensor:
    """A leaf has no children. The dead (node 0, the root) are counted in: nothing grows from
    them."""
    return (trie.child_offsets[nodes_BK] == trie.child_offsets[nodes_BK + 1]) | (nodes_BK == 0)


def _extend(
    beams: Beams, logits: Tensor, trie: ItemTrie, num_beams: int, closed: Tensor | None
) -> tuple[Beams, Tensor, Tensor]:
    """One level down: the best num_beams among all children of all beams, and the finished beams as
    they are.

    logits: [B * K', V], K' beams so far. Returns the new beams, the beam each came from and the
    token it took. Tokens outside the trie are never looked at, so that an empty list of children
    lets nothing through; nor are `closed` children (ItemTrie.exhausted).
    """
    num_users, width = beams.nodes_BK.shape
    logits_BKV = logits.to(beams.scores_BK.dtype).view(num_users, width, -1)
    tokens_BKC, nodes_BKC, mask_BKC = trie.children(beams.nodes_BK)
    if closed is not None and len(closed):
        keys_BKC = (
            nodes_BKC
            + trie.num_nodes * torch.arange(num_users, device=nodes_BKC.device)[:, None, None]
        )
        places_BKC = torch.searchsorted(closed, keys_BKC).clamp(max=len(closed) - 1)
        mask_BKC &= closed[places_BKC] != keys_BKC
    logps_BKC = logits_BKV.gather(2, tokens_BKC) - logits_BKV.logsumexp(-1, keepdim=True)
    scores_BKC = (beams.scores_BK[..., None] + logps_BKC).masked_fill(~mask_BKC, -torch.inf)
    finished_BK = trie.child_offsets[beams.nodes_BK] == trie.child_offsets[beams.nodes_BK + 1]
    kept_BK1 = beams.scores_BK.masked_fill(~finished_BK, -torch.inf)[..., None]
    scores = torch.cat([scores_BKC, kept_BK1], dim=2).flatten(1)
    nodes = torch.cat([nodes_BKC, beams.nodes_BK[..., None]], dim=2).flatten(1)
    tokens = torch.nn.functional.pad(tokens_BKC, (0, 1)).flatten(
        1
    )  # a finished beam takes no token
    missing = max(0, num_beams - scores.shape[1])
    best = scores.topk(num_beams - missing, dim=1)
    chosen = _pad(best.indices, missing, 0)
    scores_BK = _pad(best.values, missing, -torch.inf)
    dead = scores_BK.isneginf()
    beams = Beams(nodes.gather(1, chosen).masked_fill(dead, 0), scores_BK)
    return beams, chosen // (tokens_BKC.shape[2] + 1), tokens.gather(1, chosen)


def _pad(tensor: Tensor, missing: int, value: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, missing), value=value) if missing else tensor


def _expand_items(beams: Beams, trie: ItemTrie, num_beams: int) -> tuple[Tensor, Tensor]:
    """Leaves to items: every item of a leaf, in order, cut at num_beams."""
    alive_BK = ~beams.scores_BK.isneginf()
    counts_BK = (trie.node_end - trie.node_start)[beams.nodes_BK] * alive_BK
    ends_BK = counts_BK.cumsum(1)
    places = torch.arange(num_beams, device=ends_BK.device).expand(len(ends_BK), -1).contiguous()
    beam = torch.searchsorted(ends_BK, places, right=True)
    filled = beam < num_beams
    beam = beam.clamp(max=num_beams - 1)
    offset = places - (ends_BK - counts_BK).gather(1, beam)
    leaf = trie.node_start[beams.nodes_BK.gather(1, beam)] + offset
    items_BK = trie.leaf_items[leaf.masked_fill(~filled, 0)].masked_fill(~filled, -1)
    return items_BK, beams.scores_BK.gather(1, beam).masked_fill(~filled, -torch.inf)
