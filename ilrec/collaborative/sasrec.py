"""SASRec, the light collaborative filter whose opinion becomes the reward (Kang & McAuley 2018;
method.md, step 4).

A causal transformer over item embeddings, trained with cross-entropy over the full catalogue at
every position. Where no user has an item twice, items of the history are no candidates, in training
and in scoring. The command line is tools/train_sasrec.py.

Shapes: B batch, T positions, D hidden size, I items, P positions with a target, S pairs of a
    position and an item seen before it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilrec.config.sections import SASRecConfig
from ilrec.errors import InputError
from ilrec.files.outputs import whole_file, write_text
from ilrec.files.reading import read_json
from ilrec.items.numbering import numbering_digest
from ilrec.ranking.candidates import choose_candidates, first_repeat

PADDING = -1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ITEMS_DIGEST = "items_sha256"  # a field of CONFIG
INITIAL_STD = 0.02
# Scores of one validation batch: this many users times the catalogue.
VALIDATION_BATCH_SIZE = 512
VALIDATION_CUTOFF = 10

# The logit of an item that is no candidate: e to it is 0, and softmax over nothing else is no NaN.
NEVER = torch.finfo(torch.float32).min

Sequences = Sequence[Sequence[int] | np.ndarray]


class Block(nn.Module):
    """Self-attention and feed-forward, pre-norm; the feed-forward is as narrow as the paper's
    (equation 6)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
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
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_B1TT, dropout_p=self.dropout if self.training else 0.0
        )
        update_BTD = self.out(attended.transpose(1, 2).flatten(2))
        states_BTD = states_BTD + F.dropout(update_BTD, self.dropout, self.training)
        return states_BTD + self.feed_forward(self.feed_forward_norm(states_BTD))


class SASRec(nn.Module):
    """Scores every item as a user's next one. Items are 0 ... num_items - 1."""

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.num_items, self.config = num_items, config
        self.items = nn.Embedding(num_items, config.hidden_size)
        self.positions = nn.Embedding(config.max_history_items, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        for parameter in (self.items.weight, self.positions.weight):
            nn.init.normal_(parameter, std=INITIAL_STD)

    def forward(self, items_BT: Tensor) -> Tensor:
        """items_BT: int64, oldest first, padded with -1 on the left, T <= max_history_items.
        Returns states [B, T, D].

        The state at t has seen the items up to t. The newest item always has the last position.
        """
        length = items_BT.shape[1]
        is_item_BT = items_BT != PADDING
        recency_T = torch.arange(
            self.config.max_history_items - length,
            self.config.max_history_items,
            device=items_BT.device,
        )
        states_BTD = self.dropout(self.items(items_BT.clamp(min=0)) + self.positions(recency_T))
        # Padding sees itself, because a row of attention with nothing in it is NaN.
        itself_TT = torch.eye(length, dtype=torch.bool, device=items_BT.device)
        mask_B1TT = (is_item_BT[:, None, None, :] & torch.ones_like(itself_TT).tril()) | itself_TT
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
        """p_cf(i | user) of method.md, step 4: float32 [B, I], rows sum to 1; empty history:
        uniform. No dropout.

        Under `candidates: unseen` all items of a history have probability 0, those that are too old
        to be read too.
        """
        self.eval()
        device = self.items.weight.device
        items_BT = _left_padded(
            [history[-self.config.max_history_items :] for history in histories]
        ).to(device)
        logits_BI = self.item_logits(self(items_BT)[:, -1])
        is_empty_B = (items_BT == PADDING).all(dim=1)
        logits_BI = logits_BI.masked_fill(is_empty_B[:, None], 0.0).float()
        if self.config.candidates == "unseen":
            seen_BT = _left_padded(histories).to(device)
            logits_BI.index_put_(_pairs(seen_BT, seen_BT != PADDING), logits_BI.new_tensor(NEVER))
        return logits_BI.softmax(dim=-1)

    def save(self, directory: str | Path, item_ids: Iterable[str]) -> None:
        """Weights, then the configuration that makes them complete, each beside and renamed.

        item_ids: of items 0, 1, ...; their digest is saved, so that load() knows whose numbers
            these are.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG).unlink(missing_ok=True)  # no instant has new weights with old settings
        with whole_file(directory / WEIGHTS) as beside:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()},
                beside,
            )
        content = {
            "num_items": self.num_items,
            ITEMS_DIGEST: numbering_digest(item_ids),
            **dataclasses.asdict(self.config),
        }
        write_text(directory / CONFIG, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path, item_ids: Sequence[str]) -> SASRec:
        """The model that save() wrote, on the CPU, in evaluation mode.

        Raises InputError where it is incomplete or damaged, or item_ids are not those it was
        trained on, in order.
        """
        directory = Path(directory)
        missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
        if missing:
            raise InputError(
                f"{directory}: not a complete SASRec: {' and '.join(missing)} missing; expected a "
                "directory written by tools/train_sasrec.py"
            )
        settings = read_json(directory / CONFIG)
        if not isinstance(settings, dict):
            raise InputError(
                f"{directory / CONFIG}: expected a JSON object, got a {type(settings).__name__}"
            )
        _require_same_items(directory, settings, item_ids)
        try:
            model = cls(settings.pop("num_items"), SASRecConfig(**settings))
            model.load_state_dict(load_file(directory / WEIGHTS))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{directory}: {CONFIG} and {WEIGHTS} do not fit together ({reason}); expected both "
                "from one run of tools/train_sasrec.py: run it again"
            ) from None
        return model.eval()


def _require_same_items(directory: Path, settings: dict[str, Any], item_ids: Sequence[str]) -> None:
    """Takes the digest out of the settings."""
    digest, num_items = settings.pop(ITEMS_DIGEST, None), settings.get("num_items")
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
    raise InputError(
        f"{directory}: this SASRec {fault}; train it on this data with tools/train_sasrec.py"
    )


def train_sasrec(
    train_sequences: Sequences,
    num_items: int,
    config: SASRecConfig,
    valid: tuple[Sequences, Sequence[int] | np.ndarray],
    log: Callable[[str], object],
) -> SASRec:
    """Train, and return the epoch with the best NDCG@10 on `valid`, (histories, targets), on the
    CPU.

    Every item of a training sequence but the first is a target once. The seed decides the result on
    the CPU. One line per epoch goes to `log`. Raises InputError where no sequence has two items,
    and where `candidates` does not fit them.
    """
    windows_WT = _windows(train_sequences, config.max_history_items)
    config = dataclasses.replace(config, candidates=_candidates(train_sequences, config.candidates))
    log(f"candidates: {config.candidates}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        model = SASRec(num_items, config).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        num_steps = config.num_epochs * math.ceil(len(windows_WT) / config.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
        best_ndcg, best_epoch, best_state = -1.0, 0, {}
        started = time.monotonic()
        for epoch in range(1, config.num_epochs + 1):
            loss = _train_epoch(model, optimizer, schedule, windows_WT)
            ndcg = _ndcg(model, *valid)
            if ndcg > best_ndcg:
                best_ndcg, best_epoch = ndcg, epoch
                best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            seconds = time.monotonic() - started
            log(
                f"epoch {epoch}/{config.num_epochs}: loss {loss:.3f}, valid NDCG@{VALIDATION_CUTOFF} {ndcg:.4f} "
                f"(best {best_ndcg:.4f}, epoch {best_epoch}), {seconds:.0f} s, {seconds / epoch:.1f} s/epoch, "
                f"at most {seconds / epoch * (config.num_epochs - epoch):.0f} s left"
            )
            if epoch - best_epoch >= config.patience:
                break
    model.load_state_dict(best_state)
    return model.cpu().eval()


def popularity_scores(train_sequences: Sequences, num_items: int) -> np.ndarray:
    """Interactions per item, float64 [I]: the baseline that every filter must beat."""
    return np.bincount(
        np.concatenate([np.asarray(s, dtype=np.int64) for s in train_sequences]),
        minlength=num_items,
    ).astype(np.float64)


def _train_epoch(
    model: SASRec,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    windows_WT: Tensor,
) -> float:
    """One pass over the windows in random order. Returns the mean loss per target."""
    model.train()
    device = model.items.weight.device
    loss_sum, num_targets = torch.zeros((), device=device), 0
    for batch in _batches(windows_WT, model.config.batch_size):
        window_BT = _trimmed(windows_WT[batch]).to(device)
        # Only positions that have a target are projected onto the catalogue.
        inputs_BT = window_BT[:, :-1]
        has_target_BT = inputs_BT != PADDING
        states_PD = model(inputs_BT)[has_target_BT]
        targets_P = window_BT[:, 1:][has_target_BT]
        seen = _seen_before(inputs_BT) if model.config.candidates == "unseen" else None
        loss = _loss(model.item_logits(states_PD), targets_P, seen, model.config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.detach() * len(targets_P)
        num_targets += len(targets_P)
    return loss_sum.item() / num_targets


def _loss(
    logits_PI: Tensor, targets_P: Tensor, seen: tuple[Tensor, Tensor] | None, label_smoothing: float
) -> Tensor:
    """Mean cross-entropy over the candidates, smoothed over them. Writes into logits_PI.

    seen: (positions_S, items_S), pairs that are no candidates; None: all are.
    """
    total_P, num_candidates_P = logits_PI.sum(dim=1), torch.full_like(targets_P, logits_PI.shape[1])
    if seen is not None:
        total_P = total_P.index_add(0, seen[0], -logits_PI[seen])
        num_candidates_P = num_candidates_P - torch.bincount(seen[0], minlength=len(targets_P))
        logits_PI.index_put_(seen, logits_PI.new_tensor(NEVER))
    log_sum_P = logits_PI.logsumexp(dim=1)
    target_P = logits_PI.gather(1, targets_P[:, None]).squeeze(1)
    return (
        log_sum_P - (1 - label_smoothing) * target_P - label_smoothing * total_P / num_candidates_P
    ).mean()


def _seen_before(items_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(position, item) pairs: each item that is no padding, numbered in order, with itself and the
    items before it."""
    is_item_BT = items_BT != PADDING
    length = items_BT.shape[1]
    earlier_TT = torch.ones(length, length, dtype=torch.bool, device=items_BT.device).tril()
    sees_PT = (is_item_BT[:, :, None] & is_item_BT[:, None, :] & earlier_TT)[is_item_BT]
    return _pairs(items_BT[:, None, :].expand(-1, length, -1)[is_item_BT], sees_PT)


def _pairs(items: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """(row, item) for each True of `which`, both [rows, columns]."""
    return which.nonzero()[:, 0], items[which]


def _candidates(sequences: Sequences, wanted: str) -> str:
    """As choose_candidates; InputError where unseen is wanted and does not fit."""
    if wanted == "unseen" and (repeated := first_repeat(sequences)) is not None:
        raise InputError(
            f"candidates: unseen does not fit the data: training sequence {repeated} (from 0) has an item twice; expected "
            "auto or all"
        )
    return choose_candidates(wanted, sequences)


def _ndcg(model: SASRec, histories: Sequences, targets: Sequence[int] | np.ndarray) -> float:
    """NDCG@10 against the full catalogue; a tie counts against the target."""
    gain = 0.0
    for begin in range(0, len(histories), VALIDATION_BATCH_SIZE):
        users = slice(begin, begin + VALIDATION_BATCH_SIZE)
        scores_BI = model.item_probabilities(histories[users]).cpu()
        own_B1 = scores_BI.gather(1, torch.as_tensor(targets[users])[:, None])
        ranks_B = (scores_BI >= own_B1).sum(dim=1)
        gain += (1 / torch.log2(ranks_B[ranks_B <= VALIDATION_CUTOFF] + 1)).sum().item()
    return gain / len(histories)


def _windows(sequences: Sequences, max_history_items: int) -> Tensor:
    """int64 [W, max_history_items + 1], left padded with -1: what is read and, shifted by one, what
    is predicted.

    A longer sequence is cut from its newest end; neighbours share one item, a target here and the
    first input there.
    """
    windows = [
        sequence[max(end - max_history_items - 1, 0) : end]
        for sequence in sequences
        for end in range(len(sequence), 1, -max_history_items)
    ]
    if not windows:
        raise InputError(
            "SASRec: no training sequence has two items; expected users with four interactions or more, "
            "of which the last two are held out"
        )
    padded_WT = _left_padded(windows)
    return F.pad(padded_WT, (max_history_items + 1 - padded_WT.shape[1], 0), value=PADDING)


def _batches(windows_WT: Tensor, batch_size: int) -> list[Tensor]:
    """Window numbers, each once, in random batches of similar lengths: padding costs as much as
    items do."""
    lengths_W = (windows_WT != PADDING).sum(dim=1)
    batches = torch.argsort(lengths_W + torch.rand(len(windows_WT))).split(batch_size)
    return [batches[b] for b in torch.randperm(len(batches)).tolist()]


def _trimmed(windows_BT: Tensor) -> Tensor:
    """Without the columns on the left that are padding in every row."""
    longest = int((windows_BT != PADDING).sum(dim=1).max())
    return windows_BT[:, -longest:]


def _left_padded(rows: Sequences) -> Tensor:
    """int64 [B, longest row, at least 1], padded with -1 on the left."""
    width = max([1, *(len(row) for row in rows)])
    padded_BT = np.full((len(rows), width), PADDING, dtype=np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        padded_T[width - len(row) :] = row
    return torch.from_numpy(padded_BT)
