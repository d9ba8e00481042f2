"""Training of SASRec: cross-entropy over the full catalogue at every position; the epoch with the
best validation counts. The command line is `ilrec sasrec`.

Shapes: B batch, T positions, W windows, D hidden size, I items, P positions with a target, S pairs
    of a position and an item seen before it, U users.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ilrec.collaborative.sasrec import (
    NEVER,
    PADDING,
    SASRec,
    Sequences,
    left_padded,
    row_item_pairs,
)
from ilrec.config.sasrec import SASRecConfig
from ilrec.errors import InputError
from ilrec.ranking.candidates import choose_candidates, first_repeat, scored_batches
from ilrec.ranking.metrics import TargetRanks, ranking_metrics, ranks_from_scores

VALIDATION_CUTOFF = 10


def train_sasrec(
    train_sequences: Sequences,
    num_items: int,
    config: SASRecConfig,
    valid: tuple[Sequences, Sequence[int] | np.ndarray],
    log: Callable[[str], object],
) -> SASRec:
    """Train, and return the epoch with the best NDCG@10 on `valid`, on the CPU.

    Every item of a training sequence but the first is a target once. valid: (histories, targets).
    log: gets one line for each epoch. On the CPU the seed decides the result, and the caller's own
    random numbers stay as they are. Raises InputError if no sequence has two items, or if
    `candidates` does not fit the sequences.
    """
    windows_WT = _windows(train_sequences, config.max_history_items)
    # The data decides `auto` once, and the decision is saved with the model.
    config = dataclasses.replace(config, candidates=_candidates(train_sequences, config.candidates))
    log(f"candidates: {config.candidates}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        model = SASRec(num_items, config).to(device)
        _train_epochs(model, windows_WT, valid, log)
    return model.cpu().eval()


def _train_epochs(
    model: SASRec,
    windows_WT: Tensor,
    valid: tuple[Sequences, Sequence[int] | np.ndarray],
    log: Callable[[str], object],
) -> None:
    """Train until the validation has not improved for `patience` epochs, and leave the weights of
    the best epoch in the model."""
    config = model.config
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    # The learning rate falls to 0 over all epochs, also if training stops early.
    num_steps = config.num_epochs * math.ceil(len(windows_WT) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    best_ndcg, best_epoch = -1.0, 0
    best_state: dict[str, Tensor] = {}
    started = time.monotonic()
    for epoch in range(1, config.num_epochs + 1):
        loss = _train_epoch(model, optimizer, schedule, windows_WT)
        ndcg = _ndcg(model, *valid)
        if ndcg > best_ndcg:
            best_ndcg, best_epoch = ndcg, epoch
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        seconds = time.monotonic() - started
        seconds_left = seconds / epoch * (config.num_epochs - epoch)
        log(
            f"epoch {epoch}/{config.num_epochs}: loss {loss:.3f}, "
            f"valid NDCG@{VALIDATION_CUTOFF} {ndcg:.4f} "
            f"(best {best_ndcg:.4f}, epoch {best_epoch}), "
            f"{seconds:.0f} s, {seconds / epoch:.1f} s/epoch, at most {seconds_left:.0f} s left"
        )
        if epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best_state)


def _train_epoch(
    model: SASRec,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    windows_WT: Tensor,
) -> float:
    """One pass over the windows in random order. Returns the mean loss per target."""
    model.train()
    config = model.config
    device = model.items.weight.device
    loss_sum = torch.zeros((), device=device)
    num_targets = 0
    for batch in _batches(windows_WT, config.batch_size):
        window_BT = _trimmed(windows_WT[batch]).to(device)
        inputs_BT = window_BT[:, :-1]

        # Only positions with a target are projected onto the catalogue, which is the largest cost.
        has_target_BT = inputs_BT != PADDING
        states_PD = model(inputs_BT)[has_target_BT]
        targets_P = window_BT[:, 1:][has_target_BT]
        seen = _seen_before(inputs_BT) if config.candidates == "unseen" else None
        loss = _loss(model.item_logits(states_PD), targets_P, seen, config.label_smoothing)

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
    """Mean cross-entropy over the candidates, with label smoothing over them. Writes into
    logits_PI.

    seen: (positions_S, items_S), the pairs that are no candidates; None means that all are.
    """
    # The smoothing needs the mean logit of the candidates alone, so seen items are taken out of the
    # sum before their logits are overwritten.
    total_P = logits_PI.sum(dim=1)
    num_candidates_P = torch.full_like(targets_P, logits_PI.shape[1])
    if seen is not None:
        positions_S, _ = seen
        total_P = total_P.index_add(0, positions_S, -logits_PI[seen])
        num_seen_P = torch.bincount(positions_S, minlength=len(targets_P))
        num_candidates_P = num_candidates_P - num_seen_P
        logits_PI.index_put_(seen, logits_PI.new_tensor(NEVER))

    log_sum_P = logits_PI.logsumexp(dim=1)
    target_P = logits_PI.gather(1, targets_P[:, None]).squeeze(1)
    smoothed_P = label_smoothing * total_P / num_candidates_P
    return (log_sum_P - (1 - label_smoothing) * target_P - smoothed_P).mean()


def _seen_before(items_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (position, item): each position with its own item and the items before it. Positions
    are numbered in order, without padding."""
    is_item_BT = items_BT != PADDING
    length = items_BT.shape[1]
    not_later_TT = torch.ones(length, length, dtype=torch.bool, device=items_BT.device).tril()
    sees_BTT = is_item_BT[:, :, None] & is_item_BT[:, None, :] & not_later_TT
    items_BTT = items_BT[:, None, :].expand(-1, length, -1)
    return row_item_pairs(items_BTT[is_item_BT], sees_BTT[is_item_BT])


def _candidates(sequences: Sequences, wanted: str) -> str:
    """As choose_candidates. Raises InputError if unseen is wanted and does not fit."""
    if wanted == "unseen":
        repeated = first_repeat(sequences)
        if repeated is not None:
            raise InputError(
                f"candidates: unseen does not fit the data: training sequence {repeated} (from 0) "
                "has an item twice; expected auto or all"
            )
    return choose_candidates(wanted, sequences)


def _ndcg(model: SASRec, histories: Sequences, targets: Sequence[int] | np.ndarray) -> float:
    """NDCG@10 against the full catalogue. A tie counts against the target."""
    of_each = list(np.asarray(targets)[:, None])  # One target for each user.
    # Seen items have probability 0 already if they are no candidates.
    ranks = []
    for batch, scores_BI in scored_batches(histories, model.item_probabilities, "all"):
        ranks.append(ranks_from_scores(scores_BI.numpy(), of_each[batch]))
    target_ranks = TargetRanks.one_each(np.concatenate(ranks))
    return ranking_metrics(target_ranks, (VALIDATION_CUTOFF,))[f"ndcg@{VALIDATION_CUTOFF}"]


def _windows(sequences: Sequences, max_history_items: int) -> Tensor:
    """int64 [W, max_history_items + 1], padded with -1 on the left: what is read and, shifted by
    one, what is predicted.

    A longer sequence is cut from its newest end. Neighbouring windows share one item: it is the
    last target of the older one and the first input of the newer one.
    """
    windows = []
    for sequence in sequences:
        for end in range(len(sequence), 1, -max_history_items):
            windows.append(sequence[max(end - max_history_items - 1, 0) : end])
    if not windows:
        raise InputError(
            "SASRec: no training sequence has two items; expected users with four interactions or "
            "more, of which the last two are held out"
        )
    padded_WT = left_padded(windows)
    return F.pad(padded_WT, (max_history_items + 1 - padded_WT.shape[1], 0), value=PADDING)


def _batches(windows_WT: Tensor, batch_size: int) -> list[Tensor]:
    """Numbers of windows, each once, in random batches of similar lengths, because padding costs as
    much as items."""
    lengths_W = (windows_WT != PADDING).sum(dim=1)
    # A random fraction mixes the windows of one length.
    batches = torch.argsort(lengths_W + torch.rand(len(windows_WT))).split(batch_size)
    return [batches[batch] for batch in torch.randperm(len(batches)).tolist()]


def _trimmed(windows_BT: Tensor) -> Tensor:
    """Without the columns on the left that are padding in every row."""
    longest = int((windows_BT != PADDING).sum(dim=1).max())
    return windows_BT[:, -longest:]
