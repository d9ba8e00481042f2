"""The contestants of tools/benchmarks/benchmark_ops.py and the input they are given: one table, one
small function each.

A contestant is its name, what it computes, and a function from a `Case` to the loss. Contestants
that compute the same thing are checked against each other before anything is timed. To add one, add
a line to CONTESTANTS.

Shape letters: B samples, T positions of each, N = B * T tokens, S of them supervised, K readout
    layers, H hidden, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ilrec.ops import IGNORE_INDEX, Objective, cross_layer_loss
from ilrec.ops.reference import (
    distillation_loss,
    hard_negatives,
    negative_weights,
    preference_loss,
    reward_loss,
    reward_support,
    reward_target,
)

THREE_TERMS, CROSS_ENTROPY, DIVERGENCE = "three terms", "cross-entropy only", "distillation only"

# A last layer with logits of this spread and readouts this far from it find about ten hard
# negatives a token, as in training.
LOGIT_SPREAD, READOUT_NOISE, LABEL_RANKS, REWARDS_PER_ROW = 3.0, 0.7, 8, 64
ROWS_AT_A_TIME = 256


class Supervised(NamedTuple):
    """The rows with a label."""

    hidden_SH: Tensor
    readout_KSH: Tensor
    labels_S: Tensor


@dataclass(frozen=True)
class Case:
    """One input of the operation. Only the last positions of each sample have a label."""

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
        return [
            tensor
            for tensor in (self.hidden_NH, self.readout_KNH, self.head_VH)
            if tensor.requires_grad
        ]

    @property
    def num_labels(self) -> int:
        return int((self.labels_N != IGNORE_INDEX).sum())

    def supervised(self) -> Supervised:
        rows_S = (self.labels_N != IGNORE_INDEX).nonzero()[:, 0]
        if len(rows_S) == len(
            self.labels_N
        ):  # a copy of everything would be charged to whoever asks
            return Supervised(self.hidden_NH, self.readout_KNH, self.labels_N)
        return Supervised(
            self.hidden_NH[rows_S], self.readout_KNH[:, rows_S], self.labels_N[rows_S]
        )

    def reward_rows(self) -> list[tuple[Tensor, Tensor]]:
        """(token ids, values) of each supervised row; the rewards name no others."""
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
    """Random states whose readout finds the label likely, but seldom first; rewards on the
    readout's favourites and at random."""
    device, dtype, hidden_size = layout.device, layout.dtype, layout.hidden_size
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device)
    num_rows = num_samples * length
    head_VH = (normal(layout.vocab_size, hidden_size) * (LOGIT_SPREAD / hidden_size**0.5)).to(dtype)
    hidden_NH = normal(num_rows, hidden_size).to(dtype)
    readout_KNH = hidden_NH + READOUT_NOISE * normal(layout.num_layers, num_rows, hidden_size).to(
        dtype
    )
    is_target_N = torch.arange(num_rows, device=device) % length >= length - num_targets
    targets_S = is_target_N.nonzero()[:, 0]
    likely_SL = _likely_tokens(readout_KNH[:, targets_S].mean(0), head_VH)
    pick_S = torch.randint(
        likely_SL.shape[1], (len(targets_S), 1), generator=generator, device=device
    )
    labels_N = torch.full((num_rows,), IGNORE_INDEX, device=device).index_copy(
        0, targets_S, likely_SL.gather(1, pick_S)[:, 0]
    )
    at_random_SE = torch.randint(
        layout.vocab_size,
        (len(targets_S), REWARDS_PER_ROW - likely_SL.shape[1]),
        generator=generator,
        device=device,
    )
    token_ids_SE = torch.cat([likely_SL, at_random_SE], 1)
    values_SE = torch.rand(token_ids_SE.shape, generator=generator, device=device)
    offsets_N1 = F.pad(is_target_N.long().cumsum(0) * REWARDS_PER_ROW, (1, 0))
    return Case(
        hidden_NH.requires_grad_(),
        readout_KNH.requires_grad_(),
        head_VH.requires_grad_(layout.train_head),
        labels_N,
        (offsets_N1, token_ids_SE.flatten(), values_SE.flatten()),
        objective,
        num_samples,
        layout.slab_bytes,
    )


def _likely_tokens(ensemble_SH: Tensor, head_VH: Tensor) -> Tensor:
    top = min(LABEL_RANKS, len(head_VH))
    return torch.cat(
        [
            (rows @ head_VH.T).float().topk(top, 1).indices
            for rows in ensemble_SH.split(ROWS_AT_A_TIME)
        ]
    )


def fused_loss(case: Case, backend: str) -> Tensor:
    """This project's operation, as the trainer calls it."""
    return cross_layer_loss(
        case.hidden_NH,
        case.readout_KNH,
        case.head_VH,
        case.labels_N,
        objective=case.objective,
        token_rewards=case.rewards,
        backend=backend,
        slab_bytes=case.slab_bytes,
    )[0]


def fused_plain_loss(case: Case) -> Tensor:
    """This project's operation without the three terms: SFT."""
    plain = replace(case.objective, beta=0.0, distillation_weight=0.0, reward_weight=0.0)
    return fused_loss(replace(case, objective=plain), "row_slab")


def reference_loss(case: Case) -> Tensor:
    """(a) All K + 1 heads materialised and vectorised over tokens; autograd does the rest."""
    rows, head_VH = case.supervised(), case.head_VH
    dtype = torch.promote_types(head_VH.dtype, torch.float32)
    z_SV = (rows.hidden_SH @ head_VH.T).to(dtype)
    # Distillation moves the readout layers, never the head.
    ze_SV = torch.stack(
        [(layer_SH @ head_VH.detach().T).to(dtype) for layer_SH in rows.readout_KSH]
    ).mean(0)
    reward_SV = torch.stack(
        [
            torch.zeros_like(z_SV[0]).index_add(0, ids, values.to(dtype))
            for ids, values in case.reward_rows()
        ]
    )
    return _three_terms(z_SV, ze_SV, rows.labels_S, reward_SV, case.objective).mean()


def released_loss(case: Case) -> Tensor:
    """(b) The way of the released code, written anew, with this project's equations: logits of
    every position of every prompt for every layer, then a Python loop over the supervised tokens.

    The loop is given the supervised rows gathered in one step. Indexing [B, T, V] logits token by
    token would be worse by far: each token's backward pass would fill another [B, T, V] tensor with
        zeros.
    """
    dtype = torch.promote_types(case.head_VH.dtype, torch.float32)
    states_GBTH = [
        states.unflatten(0, (case.num_samples, -1))
        for states in (case.hidden_NH, *case.readout_KNH)
    ]
    heads = [case.head_VH] + [case.head_VH.detach()] * len(case.readout_KNH)
    logits_GBTV = [
        states_BTH @ head_VH.T for states_BTH, head_VH in zip(states_GBTH, heads, strict=True)
    ]
    mask_BT = (case.labels_N != IGNORE_INDEX).unflatten(0, (case.num_samples, -1))
    tokens_GS = [logits_BTV[mask_BT].to(dtype).unbind(0) for logits_BTV in logits_GBTV]
    labels_S = case.labels_N[mask_BT.flatten()]
    losses = []
    for row, (ids, values) in enumerate(case.reward_rows()):
        z_1V = tokens_GS[0][row][None]
        ze_1V = torch.stack([tokens_S[row] for tokens_S in tokens_GS[1:]]).mean(0)[None]
        reward_1V = torch.zeros_like(z_1V[0]).index_add(0, ids, values.to(dtype))[None]
        losses.append(
            _three_terms(z_1V, ze_1V, labels_S[row : row + 1], reward_1V, case.objective)[0]
        )
    return torch.stack(losses).mean()


def _three_terms(
    z_NV: Tensor, ze_NV: Tensor, labels_N: Tensor, reward_NV: Tensor, objective: Objective
) -> Tensor:
    """[N], by the functions of the specification."""
    negatives_NV = hard_negatives(ze_NV.detach(), z_NV.detach(), labels_N, objective, None)
    weights_NV = negative_weights(ze_NV.detach(), negatives_NV, objective.weight_temperature)
    support_NV = reward_support(negatives_NV, labels_N, objective.reward_tokens)
    target_NV = reward_target(reward_NV, support_NV, objective.reward_temperature)
    return (
        preference_loss(z_NV, weights_NV, labels_N, objective.beta)
        + objective.distillation_weight * distillation_loss(z_NV, ze_NV, None)
        + objective.reward_weight * reward_loss(z_NV, target_NV)
    )


def cross_entropy_loss(case: Case) -> Tensor:
    """(c) What every language model is trained with, on the supervised rows."""
    rows, dtype = case.supervised(), torch.promote_types(case.head_VH.dtype, torch.float32)
    return F.cross_entropy((rows.hidden_SH @ case.head_VH.T).to(dtype), rows.labels_S)


def torch_loss(case: Case) -> Tensor:
    """(d) torch's own chunked operation."""
    rows = case.supervised()
    return F.linear_cross_entropy(
        rows.hidden_SH, case.head_VH, rows.labels_S, options=torch.nn.LinearCrossEntropyOptions()
    )


def liger_cross_entropy_loss(case: Case) -> Tensor:
    """(e)"""
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    rows = case.supervised()
    return LigerFusedLinearCrossEntropyLoss()(case.head_VH, rows.hidden_SH, rows.labels_S)


def liger_divergence_loss(case: Case) -> Tensor:
    """(e) jsd_beta = 0 is KL(teacher || student): the ensemble learns from the last layer."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    rows, head_VH = case.supervised(), case.head_VH.detach()
    return LigerFusedLinearJSD(jsd_beta=0.0)(
        rows.readout_KSH.mean(0), head_VH, rows.hidden_SH.detach(), head_VH, rows.labels_S
    )


def cut_cross_entropy_loss(case: Case) -> Tensor:
    """(f)"""
    from cut_cross_entropy import linear_cross_entropy

    rows = case.supervised()
    return linear_cross_entropy(rows.hidden_SH, case.head_VH, rows.labels_S)


def _always(case: Case) -> str | None:
    return None


def _vocab_stream_runs(case: Case) -> str | None:
    """It alone knows where it runs."""
    try:
        with torch.no_grad():
            fused_loss(case.first_samples(1), "vocab_stream")
    except ValueError as error:
        return f"not available: {error}"
    return None


def _torch_has_it(case: Case) -> str | None:
    return (
        None
        if hasattr(F, "linear_cross_entropy")
        else f"torch {torch.__version__} has no linear_cross_entropy"
    )


def _library_runs(package: str, case: Case) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if case.head_VH.is_cuda else "needs CUDA"


@dataclass(frozen=True)
class Contestant:
    """`missing` gives the reason why it cannot run on a case, or None.

    num_products: how many products of N x V x H multiply-adds the task needs with a frozen head,
        however a contestant goes about it.
    logits_held: an estimate of the logits (elements) alive at once, so that what cannot fit is not
        begun.
    third_party: its failures are reported in its row; a failure of our own stops the run.
    """

    name: str
    computes: str
    loss: Callable[[Case], Tensor]
    num_products: int
    missing: Callable[[Case], str | None] = _always
    logits_held: Callable[[Case], int] = lambda case: 0
    third_party: bool = False
    in_default: bool = True


# Two groups (last layer, ensemble), each projected and projected back: 4 products. Cross-entropy
# has one group. The divergence takes both groups forward and one back.
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("row_slab", THREE_TERMS, partial(fused_loss, backend="row_slab"), 4),
        Contestant(
            "vocab_stream",
            THREE_TERMS,
            partial(fused_loss, backend="vocab_stream"),
            4,
            _vocab_stream_runs,
        ),
        Contestant(
            "reference",
            THREE_TERMS,
            reference_loss,
            4,
            logits_held=lambda case: (
                (len(case.readout_KNH) + 12) * case.num_labels * len(case.head_VH)
            ),
        ),
        Contestant(
            "released",
            THREE_TERMS,
            released_loss,
            4,
            in_default=False,
            logits_held=lambda case: (
                (len(case.readout_KNH) + 2) * len(case.labels_N) * len(case.head_VH)
            ),
        ),
        Contestant("row_slab_ce", CROSS_ENTROPY, fused_plain_loss, 2),
        Contestant(
            "cross_entropy",
            CROSS_ENTROPY,
            cross_entropy_loss,
            2,
            logits_held=lambda case: 4 * case.num_labels * len(case.head_VH),
        ),
        Contestant(
            "torch_linear_ce", CROSS_ENTROPY, torch_loss, 2, _torch_has_it, third_party=True
        ),
        Contestant(
            "liger_ce",
            CROSS_ENTROPY,
            liger_cross_entropy_loss,
            2,
            partial(_library_runs, "liger_kernel"),
            third_party=True,
        ),
        Contestant(
            "liger_jsd",
            DIVERGENCE,
            liger_divergence_loss,
            3,
            partial(_library_runs, "liger_kernel"),
            third_party=True,
        ),
        Contestant(
            "cut_ce",
            CROSS_ENTROPY,
            cut_cross_entropy_loss,
            2,
            partial(_library_runs, "cut_cross_entropy"),
            third_party=True,
        ),
    )
}
