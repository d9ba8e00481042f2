"""The input that the contestants of tools/benchmarks/benchmark_ops.py are given: random, but with
as many hard negatives as training has.

    from benchmark_case import Layout, make_case      # for its siblings; not a program

Shape letters: B samples, T positions of each, N = B * T tokens, S of them supervised, K readout
layers, H hidden, V vocabulary, L likely tokens of a row, E entries of the rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ilrec.ops import IGNORE_INDEX, Objective

# A last layer with logits of this spread and readouts this far from it find about ten hard
# negatives a token, as in training.
LOGIT_SPREAD = 3.0
READOUT_NOISE = 0.7
# The label is one of so many tokens that the readout finds most likely.
LABEL_RANKS = 8
REWARDS_PER_ROW = 64
# Rows projected at a time to find their likely tokens: logits of all rows would not fit.
ROWS_AT_A_TIME = 256


class Supervised(NamedTuple):
    """The rows with a label."""

    hidden_SH: Tensor
    readout_KSH: Tensor
    labels_S: Tensor


@dataclass(frozen=True)
class Case:
    """One input of the operation. Only the last positions of each sample have a label.

    rewards: (offsets, token ids, values), one row of entries for each token.
    """

    hidden_NH: Tensor
    readout_KNH: Tensor
    head_VH: Tensor
    labels_N: Tensor
    rewards: tuple[Tensor, Tensor, Tensor]
    objective: Objective
    num_samples: int
    slab_bytes: int | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors whose gradients a step makes."""
        tensors = (self.hidden_NH, self.readout_KNH, self.head_VH)
        return [tensor for tensor in tensors if tensor.requires_grad]

    @property
    def num_labels(self) -> int:
        return int((self.labels_N != IGNORE_INDEX).sum())

    def supervised(self) -> Supervised:
        rows_S = (self.labels_N != IGNORE_INDEX).nonzero()[:, 0]
        if len(rows_S) == len(self.labels_N):
            # No copy: it would count as memory of the contestant that asked.
            return Supervised(self.hidden_NH, self.readout_KNH, self.labels_N)
        return Supervised(
            self.hidden_NH[rows_S], self.readout_KNH[:, rows_S], self.labels_N[rows_S]
        )

    def reward_rows(self) -> list[tuple[Tensor, Tensor]]:
        """(token ids, values) of each supervised row; other rows have no rewards."""
        offsets_N1, token_ids_E, values_E = self.rewards
        sizes = offsets_N1.diff()[self.labels_N != IGNORE_INDEX].tolist()
        return list(zip(token_ids_E.split(sizes), values_E.split(sizes), strict=True))

    def first_samples(self, num_samples: int) -> Case:
        """The first samples alone, copied, so that nothing of the whole is kept alive or
        differentiated."""
        num_rows = num_samples * (len(self.labels_N) // self.num_samples)
        offsets_N1, token_ids_E, values_E = self.rewards
        num_entries = int(offsets_N1[num_rows])
        return replace(
            self,
            num_samples=num_samples,
            labels_N=self.labels_N[:num_rows].clone(),
            hidden_NH=self.hidden_NH.detach()[:num_rows].clone().requires_grad_(),
            readout_KNH=self.readout_KNH.detach()[:, :num_rows].clone().requires_grad_(),
            rewards=(
                offsets_N1[: num_rows + 1].clone(),
                token_ids_E[:num_entries].clone(),
                values_E[:num_entries].clone(),
            ),
        )


@dataclass(frozen=True)
class Layout:
    """Sizes, and where the input lies."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    device: torch.device
    dtype: torch.dtype
    train_head: bool = False
    slab_bytes: int | None = None


def make_case(
    layout: Layout, objective: Objective, num_samples: int, length: int = 1, num_targets: int = 1
) -> Case:
    """Random states whose readout finds the label likely, but seldom first. Rewards are on the
    readout's favourites, and on random tokens.

    num_targets: supervised tokens of a sample, the last of its `length` tokens.
    """
    device, dtype, hidden_size = layout.device, layout.dtype, layout.hidden_size
    # One generator, so that a seed makes the same case again: the order of the draws matters.
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device)
    random_integers = partial(torch.randint, generator=generator, device=device)

    # States: a head, the last layer, and readouts around the last layer.
    num_rows = num_samples * length
    head_VH = (normal(layout.vocab_size, hidden_size) * (LOGIT_SPREAD / hidden_size**0.5)).to(dtype)
    hidden_NH = normal(num_rows, hidden_size).to(dtype)
    noise_KNH = normal(layout.num_layers, num_rows, hidden_size).to(dtype)
    readout_KNH = hidden_NH + READOUT_NOISE * noise_KNH

    # Labels: one of the tokens that the readout finds likely.
    is_target_N = torch.arange(num_rows, device=device) % length >= length - num_targets
    targets_S = is_target_N.nonzero()[:, 0]
    likely_SL = _likely_tokens(readout_KNH[:, targets_S].mean(0), head_VH)
    pick_S1 = random_integers(likely_SL.shape[1], (len(targets_S), 1))
    label_S = likely_SL.gather(1, pick_S1)[:, 0]
    labels_N = torch.full((num_rows,), IGNORE_INDEX, device=device)
    labels_N = labels_N.index_copy(0, targets_S, label_S)

    # Rewards: on the likely tokens, and on tokens drawn at random.
    num_random = REWARDS_PER_ROW - likely_SL.shape[1]
    at_random_SE = random_integers(layout.vocab_size, (len(targets_S), num_random))
    token_ids_SE = torch.cat([likely_SL, at_random_SE], 1)
    values_SE = torch.rand(token_ids_SE.shape, generator=generator, device=device)
    offsets_N1 = F.pad(is_target_N.long().cumsum(0) * REWARDS_PER_ROW, (1, 0))
    return Case(
        hidden_NH=hidden_NH.requires_grad_(),
        readout_KNH=readout_KNH.requires_grad_(),
        head_VH=head_VH.requires_grad_(layout.train_head),
        labels_N=labels_N,
        rewards=(offsets_N1, token_ids_SE.flatten(), values_SE.flatten()),
        objective=objective,
        num_samples=num_samples,
        slab_bytes=layout.slab_bytes,
    )


def _likely_tokens(ensemble_SH: Tensor, head_VH: Tensor) -> Tensor:
    """The LABEL_RANKS tokens with the largest logits of each row: [S, L]."""
    top = min(LABEL_RANKS, len(head_VH))
    found = []
    for rows in ensemble_SH.split(ROWS_AT_A_TIME):
        logits = (rows @ head_VH.T).float()
        found.append(logits.topk(top, 1).indices)
    return torch.cat(found)
