"""SASRec, the light collaborative filter whose probabilities become the reward (Kang & McAuley
2018; docs/method.md, token reward).

A causal transformer over item embeddings. If no user of the data has an item twice, the items of a
history are no candidates, in training and in scoring. sasrec_training.py trains it.

Shapes: B batch, T positions, D hidden size, I items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilrec.config.sasrec import SASRecConfig
from ilrec.errors import InputError
from ilrec.files.outputs import whole_file, write_text
from ilrec.files.reading import read_json
from ilrec.items.numbering import numbering_digest

PADDING = -1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
# The field of CONFIG with the digest of the item ids.
ITEMS_DIGEST = "items_sha256"
# The field of CONFIG with the split of the training data.
SPLIT = "split"
INITIAL_STD = 0.02
# The logit of an item that is no candidate. Its exponential is 0, and unlike -inf it gives no NaN
# if nothing else is left.
NEVER = torch.finfo(torch.float32).min
# What a configuration and weights that do not fit together can raise when a model is made of them.
MISFITS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RuntimeError,
    SafetensorError,
)

Sequences = Sequence[Sequence[int] | np.ndarray]


class Block(nn.Module):
    """Self-attention and feed-forward, each with a norm before it. The feed-forward is as narrow as
    the paper's (equation 6)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        # The order of these lines decides the initial weights for a seed.
        self.attention_norm = nn.LayerNorm(size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.Linear(size, size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(size, size),
            nn.Dropout(config.dropout),
        )

    def forward(self, states_BTD: Tensor, mask_B1TT: Tensor) -> Tensor:
        """mask_B1TT: bool, True where a position (row) may look at another (column)."""
        heads = self.qkv(self.attention_norm(states_BTD)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_B1TT, dropout_p=dropout
        )
        update_BTD = self.out(attended.transpose(1, 2).flatten(2))
        states_BTD = states_BTD + F.dropout(update_BTD, self.dropout, self.training)
        return states_BTD + self.feed_forward(self.feed_forward_norm(states_BTD))


class SASRec(nn.Module):
    """Scores every item as a user's next one. Items are 0 ... num_items - 1."""

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.num_items = num_items
        self.config = config
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_history_items, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        for parameter in (self.items.weight, self.positions.weight):
            nn.init.normal_(parameter, std=INITIAL_STD)

    def forward(self, items_BT: Tensor) -> Tensor:
        """States [B, T, D]. The state at t has seen the items up to t.

        items_BT: int64, oldest first, padded with -1 on the left, T <= max_history_items.
        """
        length = items_BT.shape[1]
        most = self.config.max_history_items
        # The newest item always has the last position, however short the batch is.
        recency_T = torch.arange(most - length, most, device=items_BT.device)
        states_BTD = self.dropout(self.items(items_BT.clamp(min=0)) + self.positions(recency_T))

        # A position looks at the items up to itself. Padding looks at itself, because a row of
        # attention with nothing in it is NaN.
        is_item_BT = items_BT != PADDING
        itself_TT = torch.eye(length, dtype=torch.bool, device=items_BT.device)
        not_later_TT = torch.ones_like(itself_TT).tril()
        mask_B1TT = (is_item_BT[:, None, None, :] & not_later_TT) | itself_TT
        for block in self.blocks:
            states_BTD = block(states_BTD, mask_B1TT)
        return self.norm(states_BTD)

    def item_logits(self, states: Tensor) -> Tensor:
        """states [..., D] -> scores of all items [..., I], by the embedding that also reads
        them."""
        return states @ self.items.weight.T

    def item_embeddings(self) -> Tensor:
        """[I, D]"""
        return self.items.weight

    @torch.no_grad()
    def item_probabilities(self, histories: Sequences) -> Tensor:
        """p_cf(i | user) of docs/method.md: float32 [B, I]. Rows sum to 1, without dropout.

        An empty history gives equal probabilities. Under `candidates: unseen` all items of a
        history have probability 0, also those that are too old to be read.
        """
        self.eval()
        device = self.items.weight.device
        newest = [history[-self.config.max_history_items :] for history in histories]
        items_BT = left_padded(newest).to(device)
        logits_BI = self.item_logits(self(items_BT)[:, -1])
        # An empty history is padding alone, and what the model makes of that means nothing.
        is_empty_B = (items_BT == PADDING).all(dim=1)
        logits_BI = logits_BI.masked_fill(is_empty_B[:, None], 0.0).float()
        # The whole history, and not only the newest items that were read.
        if self.config.candidates == "unseen":
            seen_BT = left_padded(histories).to(device)
            seen = row_item_pairs(seen_BT, seen_BT != PADDING)
            logits_BI.index_put_(seen, logits_BI.new_tensor(NEVER))
        return logits_BI.softmax(dim=-1)

    def save(self, directory: str | Path, item_ids: Iterable[str], split: str = "") -> None:
        """Write the weights and then the configuration, without which they are incomplete.

        item_ids: of items 0, 1, ... Their digest is saved, so that load() can compare it, and so is
        split, which tells how the data was split (SplitRule); empty: not recorded.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # At no moment new weights lie beside old settings.
        (directory / CONFIG).unlink(missing_ok=True)
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        with whole_file(directory / WEIGHTS) as beside:
            save_file(weights, beside)
        content = {
            "num_items": self.num_items,
            ITEMS_DIGEST: numbering_digest(item_ids),
            SPLIT: split,
            **dataclasses.asdict(self.config),
        }
        write_text(directory / CONFIG, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path, item_ids: Sequence[str], split: str = "") -> SASRec:
        """The model that save() wrote, on the CPU, in evaluation mode.

        Raises InputError if it is incomplete or damaged, if item_ids are not the items it was
        trained on, in the same order, or if another split than this one is recorded.
        """
        directory = Path(directory)
        missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
        if missing:
            raise InputError(
                f"{directory}: not a complete SASRec: {' and '.join(missing)} missing; expected a "
                "directory written by `ilrec sasrec`"
            )
        settings = read_json(directory / CONFIG)
        if not isinstance(settings, dict):
            raise InputError(
                f"{directory / CONFIG}: expected a JSON object, got a {type(settings).__name__}"
            )
        # Before the weights: with another numbering of as many items, all shapes would fit.
        digest = settings.pop(ITEMS_DIGEST, None)
        _require_same_items(directory, digest, settings.get("num_items"), item_ids)
        _require_same_split(directory, settings.pop(SPLIT, ""), split)
        try:
            model = cls(settings.pop("num_items"), SASRecConfig(**settings))
            model.load_state_dict(load_file(directory / WEIGHTS))
        except MISFITS as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{directory}: {CONFIG} and {WEIGHTS} do not fit together ({reason}); expected "
                "both from one run of `ilrec sasrec`: run it again"
            ) from None
        return model.eval()


def _require_same_items(
    directory: Path, digest: Any, num_items: Any, item_ids: Sequence[str]
) -> None:
    """Raises InputError if the saved digest is not that of item_ids. num_items: as saved."""
    if digest == numbering_digest(item_ids):
        return
    if digest is None:
        fault = "does not say which items its numbers mean (an older version wrote it)"
    elif num_items != len(item_ids):
        fault = f"was trained on {num_items} items, the data has {len(item_ids)}"
    else:
        fault = (
            f"was trained on {num_items} items, as many as the data has, "
            "but not the same in the same order"
        )
    raise InputError(f"{directory}: this SASRec {fault}; train it on this data with `ilrec sasrec`")


def _require_same_split(directory: Path, recorded: Any, wanted: str) -> None:
    """Raises InputError if both are known and differ: one may train on the other's targets."""
    if recorded and wanted and recorded != wanted:
        raise InputError(
            f"{directory}: this SASRec was trained with the split `{recorded}`, and here it is "
            f"`{wanted}`, whose targets it may have seen; train it with the same num_targets and "
            "split_time (tools/train_sasrec.py)"
        )


def row_item_pairs(items: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """(row, item) for each True of `which`. Both have the shape [rows, columns]."""
    return which.nonzero()[:, 0], items[which]


def left_padded(rows: Sequences) -> Tensor:
    """int64 [B, longest row, at least 1], padded with -1 on the left."""
    width = max([1, *(len(row) for row in rows)])
    padded_BT = np.full((len(rows), width), PADDING, dtype=np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        padded_T[width - len(row) :] = row
    return torch.from_numpy(padded_BT)
