"""The contestants of tools/benchmarks/benchmark_ops.py: one table, one small function each.

    from benchmark_baselines import CONTESTANTS      # for its siblings; not a program

A contestant is its name, what it computes, and a function from a `Case` to the loss. Contestants
that compute the same thing are checked against each other before anything is timed. To add one, add
a line to CONTESTANTS.

Shape letters: B samples, T positions of each, N = B * T tokens, S of them supervised, K readout
layers, G = K + 1 layers with the last one, H hidden, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from benchmark_case import Case
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

# What contestants compute. Those of one kind must agree on loss and gradients.
THREE_TERMS, CROSS_ENTROPY, DIVERGENCE = "three terms", "cross-entropy only", "distillation only"


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
    """(a) All K + 1 heads materialised and vectorised over tokens. Autograd does the rest."""
    # The products are made in the head's dtype; all that follows is in float32, as in training.
    rows, head_VH = case.supervised(), case.head_VH
    dtype = torch.promote_types(head_VH.dtype, torch.float32)
    z_SV = (rows.hidden_SH @ head_VH.T).to(dtype)
    # In functions of their own, so that what they stack is released before the terms are computed.
    ze_SV = _ensemble_logits(rows.readout_KSH, head_VH, dtype)
    reward_SV = _dense_rewards(case, z_SV)
    return _three_terms(z_SV, ze_SV, rows.labels_S, reward_SV, case.objective).mean()


def _ensemble_logits(readout_KSH: Tensor, head_VH: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of the readout layers' logits: [S, V]. Distillation moves the readout layers, never
    the head."""
    layers = [(layer_SH @ head_VH.detach().T).to(dtype) for layer_SH in readout_KSH]
    return torch.stack(layers).mean(0)


def _dense_rewards(case: Case, z_SV: Tensor) -> Tensor:
    """The rewards of the supervised rows over the whole vocabulary: [S, V]."""
    rows = []
    for ids, values in case.reward_rows():
        rows.append(torch.zeros_like(z_SV[0]).index_add(0, ids, values.to(z_SV.dtype)))
    return torch.stack(rows)


def released_loss(case: Case) -> Tensor:
    """(b) The way of the released code, written anew, with this project's equations: logits of
    every position of every prompt for every layer, then a Python loop over the supervised tokens.

    The loop is given the supervised rows gathered in one step. Indexing [B, T, V] logits token by
    token would be far slower: each token's backward pass would fill another [B, T, V] tensor with
    zeros.
    """
    dtype = torch.promote_types(case.head_VH.dtype, torch.float32)
    mask_BT = (case.labels_N != IGNORE_INDEX).unflatten(0, (case.num_samples, -1))
    labels_S = case.labels_N[mask_BT.flatten()]

    # Logits of all positions, layer by layer; the last layer alone moves the head.
    heads = [case.head_VH] + [case.head_VH.detach()] * len(case.readout_KNH)
    logits_GBTV = []
    for states_NH, head_VH in zip((case.hidden_NH, *case.readout_KNH), heads, strict=True):
        states_BTH = states_NH.unflatten(0, (case.num_samples, -1))
        logits_GBTV.append(states_BTH @ head_VH.T)
    tokens_GS = [logits_BTV[mask_BT].to(dtype).unbind(0) for logits_BTV in logits_GBTV]

    # The loop over tokens. Each one has its own small tensors of one row.
    losses = []
    for row, (ids, values) in enumerate(case.reward_rows()):
        z_1V = tokens_GS[0][row][None]
        ze_1V = torch.stack([tokens_S[row] for tokens_S in tokens_GS[1:]]).mean(0)[None]
        reward_1V = torch.zeros_like(z_1V[0]).index_add(0, ids, values.to(dtype))[None]
        label_1 = labels_S[row : row + 1]
        losses.append(_three_terms(z_1V, ze_1V, label_1, reward_1V, case.objective)[0])
    return torch.stack(losses).mean()


def _three_terms(
    z_NV: Tensor, ze_NV: Tensor, labels_N: Tensor, reward_NV: Tensor, objective: Objective
) -> Tensor:
    """The loss of each row, by the functions of the specification (ilrec/ops/reference.py): [N]."""
    # Which tokens are negatives, and how much each counts, has no gradient.
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
    rows = case.supervised()
    dtype = torch.promote_types(case.head_VH.dtype, torch.float32)
    return F.cross_entropy((rows.hidden_SH @ case.head_VH.T).to(dtype), rows.labels_S)


def torch_loss(case: Case) -> Tensor:
    """(d) torch's own chunked operation."""
    rows = case.supervised()
    return F.linear_cross_entropy(
        rows.hidden_SH, case.head_VH, rows.labels_S, options=torch.nn.LinearCrossEntropyOptions()
    )


def liger_cross_entropy_loss(case: Case) -> Tensor:
    """(e) Liger's fused head and cross-entropy."""
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    rows = case.supervised()
    return LigerFusedLinearCrossEntropyLoss()(case.head_VH, rows.hidden_SH, rows.labels_S)


def liger_divergence_loss(case: Case) -> Tensor:
    """(e) jsd_beta = 0 is KL(teacher || student): the ensemble learns from the last layer."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    # Neither the head nor the teacher learns from distillation.
    rows, head_VH = case.supervised(), case.head_VH.detach()
    return LigerFusedLinearJSD(jsd_beta=0.0)(
        rows.readout_KSH.mean(0), head_VH, rows.hidden_SH.detach(), head_VH, rows.labels_S
    )


def cut_cross_entropy_loss(case: Case) -> Tensor:
    """(f) Apple's Cut Cross-Entropy."""
    from cut_cross_entropy import linear_cross_entropy

    rows = case.supervised()
    return linear_cross_entropy(rows.hidden_SH, case.head_VH, rows.labels_S)


def _always(case: Case) -> str | None:
    return None


def _vocab_stream_runs(case: Case) -> str | None:
    """Tried on one sample: only the backend itself knows where it runs."""
    try:
        with torch.no_grad():
            fused_loss(case.first_samples(1), "vocab_stream")
    except ValueError as error:
        return f"not available: {error}"
    return None


def _torch_has_it(case: Case) -> str | None:
    if hasattr(F, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no linear_cross_entropy"


def _library_runs(package: str, case: Case) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if case.head_VH.is_cuda else "needs CUDA"


def _no_logits(case: Case) -> int:
    return 0


def _reference_logits(case: Case) -> int:
    """The layers' logits, and about twelve tensors of their size on the way to the loss."""
    return (len(case.readout_KNH) + 12) * case.num_labels * len(case.head_VH)


def _released_logits(case: Case) -> int:
    """Of all positions, not of the supervised ones alone."""
    return (len(case.readout_KNH) + 2) * len(case.labels_N) * len(case.head_VH)


def _cross_entropy_logits(case: Case) -> int:
    # In the head's dtype and in float32, and the gradient of each.
    return 4 * case.num_labels * len(case.head_VH)


@dataclass(frozen=True)
class Contestant:
    """One way to compute something.

    num_products: how many products of N x V x H multiply-adds the task needs with a frozen head,
        however a contestant goes about it.
    missing: gives the reason why it cannot run on a case, or None.
    logits_held: an estimate of the logits (elements) alive at once, so that what cannot fit is not
        begun.
    third_party: its failures are reported in its row; a failure of our own stops the run.
    """

    name: str
    computes: str
    loss: Callable[[Case], Tensor]
    num_products: int
    missing: Callable[[Case], str | None] = _always
    logits_held: Callable[[Case], int] = _no_logits
    third_party: bool = False
    in_default: bool = True


def _ours_and_naive() -> list[Contestant]:
    # Three terms have two groups (last layer, ensemble), each projected and projected back: 4
    # products. Cross-entropy has one group: 2 products.
    return [
        Contestant("row_slab", THREE_TERMS, partial(fused_loss, backend="row_slab"), 4),
        Contestant(
            "vocab_stream",
            THREE_TERMS,
            partial(fused_loss, backend="vocab_stream"),
            4,
            _vocab_stream_runs,
        ),
        Contestant("reference", THREE_TERMS, reference_loss, 4, logits_held=_reference_logits),
        Contestant(
            "released",
            THREE_TERMS,
            released_loss,
            4,
            logits_held=_released_logits,
            in_default=False,
        ),
        Contestant("row_slab_ce", CROSS_ENTROPY, fused_plain_loss, 2),
        Contestant(
            "cross_entropy",
            CROSS_ENTROPY,
            cross_entropy_loss,
            2,
            logits_held=_cross_entropy_logits,
        ),
    ]


def _third_party() -> list[Contestant]:
    # The divergence takes both groups forward and one back: 3 products.
    liger_runs = partial(_library_runs, "liger_kernel")
    cut_runs = partial(_library_runs, "cut_cross_entropy")
    # A library that is not installed is no failure: the contestant's row gives that as the reason.
    found = [
        Contestant("torch_linear_ce", CROSS_ENTROPY, torch_loss, 2, _torch_has_it),
        Contestant("liger_ce", CROSS_ENTROPY, liger_cross_entropy_loss, 2, liger_runs),
        Contestant("liger_jsd", DIVERGENCE, liger_divergence_loss, 3, liger_runs),
        Contestant("cut_ce", CROSS_ENTROPY, cut_cross_entropy_loss, 2, cut_runs),
    ]
    return [replace(contestant, third_party=True) for contestant in found]


CONTESTANTS = {contestant.name: contestant for contestant in (*_ours_and_naive(), *_third_party())}
