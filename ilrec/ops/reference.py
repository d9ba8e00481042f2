"""The ILRec objective, equation by equation: the specification that every other backend is tested
against.

Plain autograd over materialised [N, V] logits: slow, and meant to be checked by reading.
Low-precision input is computed in float32, float64 stays float64. Called through
`ilrec.ops.cross_layer_loss(..., backend="reference")`.

Shape letters: N supervised tokens, K readout layers, H hidden, V vocabulary, R new tokens, E reward
entries. Source: arXiv 2602.17410 as written down in docs/method.md; "step" below is a step there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ilrec.ops.objective import Objective, TermSums, weigh
from ilrec.ops.random_negatives import Draw
from ilrec.ops.row_inputs import RowInputs


def cross_layer_sums(
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    new_tokens: tuple[Tensor, Tensor] | None,
    inputs: RowInputs,
) -> tuple[Tensor, Tensor]:
    """preference + lambda * distillation + mu * reward, summed over N; and the five sums named by
    ilrec.ops.STATS, float32.

    new_tokens: (ids_R, rows_RH), the rows that replace the head's.
    """
    objective, labels_N = inputs.objective, inputs.labels_N
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    head_VH = effective_head(lm_head_VH.to(dtype), new_tokens)
    z_NV = hidden_NH.to(dtype) @ head_VH.T
    reward_N = distillation_N = z_NV.new_zeros(len(labels_N))
    negatives_NV = torch.zeros_like(z_NV, dtype=torch.bool)
    weights_NV = torch.zeros_like(z_NV)

    # Steps 1 and 3, which look at the readout layers. The head is detached there: distillation
    # moves the readout layers, never the head, which would move the teacher.
    if readout_KNH is not None:
        layers_KNH, frozen_head_VH = readout_KNH.to(dtype), head_VH.detach()
        ze_NV = layers_KNH.mean(0) @ frozen_head_VH.T
        if objective.needs_negatives:
            negatives_NV = _negatives(ze_NV.detach(), z_NV.detach(), inputs)
            weights_NV = negative_weights(
                ze_NV.detach(), negatives_NV, objective.weight_temperature
            )
        if objective.distillation_weight > 0:
            students_JNV = [ze_NV]
            if objective.distillation_target == "per_layer":
                students_JNV = [layer_NH @ frozen_head_VH.T for layer_NH in layers_KNH]
            distillation_N = _mean_distillation(z_NV, students_JNV, inputs.candidate_ids_C)

    # Step 4, and step 2: both learn through the last layer's logits.
    if inputs.rewards is not None and objective.reward_weight > 0:
        keys_E, values_E = inputs.rewards
        reward_NV = torch.zeros_like(z_NV).flatten().index_copy(0, keys_E, values_E.to(dtype))
        support_NV = reward_support(negatives_NV, labels_N, objective.reward_tokens)
        target_NV = reward_target(reward_NV.view_as(z_NV), support_NV, objective.reward_temperature)
        reward_N = reward_loss(z_NV, target_NV)
    preference_N = preference_loss(z_NV, weights_NV, labels_N, objective.beta)

    sums = TermSums(
        preference=preference_N.sum(),
        distillation=distillation_N.sum(),
        reward=reward_N.sum(),
        num_negatives=negatives_NV.sum(),
        num_rows_without_negative=(~negatives_NV.any(1)).sum(),
    )
    stats_5 = torch.stack([value.detach().float() for value in sums])
    return weigh(sums, objective), stats_5


def _negatives(ze_NV: Tensor, z_NV: Tensor, inputs: RowInputs) -> Tensor:
    """Step 1: S as the settings have it, bool [N, V]."""
    objective, labels_N = inputs.objective, inputs.labels_N
    allowed = None
    if inputs.candidate_ids_C is not None:
        allowed = _candidate_mask(inputs.candidate_ids_C, ze_NV.shape[1])
    if objective.limits_negatives and inputs.rewards is not None:
        continues_NV = torch.zeros_like(ze_NV, dtype=torch.bool)
        allowed = continues_NV.flatten().index_fill(0, inputs.rewards[0], True).view_as(ze_NV)
    negatives_NV = hard_negatives(ze_NV, z_NV, labels_N, objective, allowed)
    if inputs.draw is not None:
        negatives_NV = random_negatives(negatives_NV, labels_N, inputs.draw)
    return negatives_NV


def _mean_distillation(
    z_NV: Tensor, students_JNV: list[Tensor], candidate_ids_C: Tensor | None
) -> Tensor:
    candidates_V = None
    if candidate_ids_C is not None:
        candidates_V = _candidate_mask(candidate_ids_C, z_NV.shape[1])
    losses_JN = [distillation_loss(z_NV, ze_NV, candidates_V) for ze_NV in students_JNV]
    return torch.stack(losses_JN).mean(0)


def _candidate_mask(candidate_ids_C: Tensor, vocab_size: int) -> Tensor:
    mask_V = torch.zeros(vocab_size, dtype=torch.bool, device=candidate_ids_C.device)
    return mask_V.index_fill(0, candidate_ids_C, True)


def effective_head(lm_head_VH: Tensor, new_tokens: tuple[Tensor, Tensor] | None) -> Tensor:
    """The head with the new tokens' rows in place of its own.

    By hand: head rows (a, b, c), ids (2, 0), rows (x, y) give (y, b, x).
    """
    if new_tokens is None:
        return lm_head_VH
    ids_R, rows_RH = new_tokens
    return lm_head_VH.index_copy(0, ids_R, rows_RH.to(lm_head_VH.dtype))


def hard_negatives(
    ze_NV: Tensor, z_NV: Tensor, labels_N: Tensor, objective: Objective, allowed: Tensor | None
) -> Tensor:
    """Step 1, S_n as bool [N, V]: { v != y : v allowed, ze[v] >= kappa }, the M largest ze, ties to
    the smaller id.

    allowed: bool, the item tokens [V], or each row's continuations [N, V]; None: every token.
    kappa = ze[y] + log(alpha) (`probability`: Pe(v) >= alpha Pe(y)) or alpha * z[y] (`logit`).

    By hand, `probability`: Pe = (1/2, 1/4, 1/8, 1/8), y = 0. alpha = 0.4 gives {1}, alpha = 0.2
    gives {1, 2, 3}; of these M = 2 keeps {1, 2}, because 2 and 3 tie.
    By hand, `logit`: ze = (3, 1, 2, 0), z[y] = 4, alpha = 0.5 give kappa = 2, S = {2}.
    """
    label_N1 = labels_N[:, None]
    if objective.threshold == "probability":
        kappa_N1 = ze_NV.gather(1, label_N1) + math.log(objective.alpha)
    else:
        kappa_N1 = objective.alpha * z_NV.gather(1, label_N1)
    negatives_NV = (ze_NV >= kappa_N1).scatter(1, label_N1, False)
    if allowed is not None:
        negatives_NV = negatives_NV & allowed
    if objective.max_negatives == 0:
        return negatives_NV
    # A stable sort keeps equal logits in order of their ids.
    masked_NV = ze_NV.masked_fill(~negatives_NV, -math.inf)
    order_NV = masked_NV.sort(dim=1, descending=True, stable=True).indices
    first_NM = order_NV[:, : objective.max_negatives]
    kept_NV = torch.zeros_like(negatives_NV).scatter(1, first_NM, True)
    return negatives_NV & kept_NV


def random_negatives(negatives_NV: Tensor, labels_N: Tensor, draw: Draw) -> Tensor:
    """In place of S (`negatives_from: random`): as many tokens for each row, by the draw. bool
    [N, V]."""
    rows_S, tokens_S = draw.take(negatives_NV.sum(1), labels_N)
    drawn_NV = torch.zeros_like(negatives_NV)
    drawn_NV[rows_S, tokens_S] = True
    return drawn_NV


def negative_weights(ze_NV: Tensor, negatives_NV: Tensor, temperature: float) -> Tensor:
    """Step 1, w_n: softmax of ze / T over S_n, 0 outside; all 0 where S_n is empty.

    By hand: Pe = (1/2, 1/4, 1/8, 1/8), S = {1, 2, 3}: T = 1 gives w = (0, 1/2, 1/4, 1/4), T = 1/2
    squares the ratios, w = (0, 4, 1, 1)/6.
    """
    return _masked_softmax(ze_NV / temperature, negatives_NV)


def preference_loss(z_NV: Tensor, weights_NV: Tensor, labels_N: Tensor, beta: float) -> Tensor:
    """Step 2, [N]: CE(softmax(z'), y) with z'_v = z_v + beta w_v |z_v|. Weights are 0 outside S and
    carry no gradient.

    By hand, y = 0, w = (0, 1), beta = 1: z = (0, 1) becomes (0, 2), and the loss log(1 + e^2) =
    2.126928 (1.313262 without the penalty). A negative logit is penalised too: z = (0, -1) becomes
    (0, 0), and the loss log 2 = 0.693147 (0.313262 without the penalty).
    """
    # A logit that overflowed to -inf stays there: -inf + inf would be NaN.
    penalty_NV = (beta * weights_NV * z_NV.abs()).masked_fill(z_NV == -math.inf, 0.0)
    penalised_NV = z_NV + penalty_NV
    return torch.nn.functional.cross_entropy(penalised_NV, labels_N, reduction="none")


def distillation_loss(z_NV: Tensor, student_NV: Tensor, candidates_V: Tensor | None) -> Tensor:
    """Step 3, [N]: KL(stopgrad(P) || Pe), both renormalised over the candidates.

    By hand: P = (1/2, 1/2), Pe = (1/4, 3/4): KL = log(2)/2 + log(2/3)/2 = log(4/3)/2 = 0.143841.
    A third token that is no candidate changes nothing: P = (1/4, 1/4, 1/2) and Pe = (1/8, 3/8, 1/2)
    give the same.
    """
    if candidates_V is not None:
        z_NV, student_NV = z_NV[:, candidates_V], student_NV[:, candidates_V]
    teacher_logp_NV = z_NV.detach().log_softmax(1)
    gap_NV = teacher_logp_NV - student_NV.log_softmax(1)
    # 0 log 0 = 0; a logit that overflowed to -inf would make it 0 * inf.
    gap_NV = gap_NV.masked_fill(teacher_logp_NV == -math.inf, 0.0)
    return (teacher_logp_NV.exp() * gap_NV).sum(1)


def reward_support(negatives_NV: Tensor, labels_N: Tensor, reward_tokens: str) -> Tensor:
    """Step 4, the tokens that share the soft target, bool [N, V]: S_n and y (`negatives`), or all
    continuations of the prefix (`continuations`).

    For the latter every token is returned: one that is no continuation has no reward, and
    reward_target leaves it out.
    """
    if reward_tokens == "continuations":
        return torch.ones_like(negatives_NV)
    return negatives_NV.scatter(1, labels_N[:, None], True)


def reward_target(reward_NV: Tensor, support_NV: Tensor, temperature: float) -> Tensor:
    """Step 4, q_n [N, V]: proportional to r^(1/T) over the support, 0 elsewhere; all 0 where r is 0
    on the whole support.

    By hand: r = (3/4, 1/4, 9), support {0, 1}: T = 1 gives q = (3/4, 1/4, 0), T = 1/2 gives
    (9, 1, 0)/10.
    """
    return _masked_softmax(reward_NV.log() / temperature, support_NV & (reward_NV > 0))


def reward_loss(z_NV: Tensor, target_NV: Tensor) -> Tensor:
    """Step 4, [N]: -sum_v q_v log P(v), with P = softmax(z), without the penalty of step 2.

    By hand: P = (1/2, 1/4, 1/4), q = (3/4, 1/4, 0) give the loss 3/4 log 2 + 1/4 log 4 =
    1.25 log 2 = 0.866434.
    """
    terms_NV = target_NV * z_NV.log_softmax(1)
    # 0 * -inf would be NaN where a logit overflowed and the token has no share.
    return -terms_NV.masked_fill(target_NV == 0, 0.0).sum(1)


def _masked_softmax(logits_NV: Tensor, mask_NV: Tensor) -> Tensor:
    """Softmax over the True entries of each row, 0 elsewhere. A row without one is all 0, not
    NaN."""
    masked_NV = logits_NV.masked_fill(~mask_NV, -math.inf)
    return masked_NV.softmax(1).masked_fill(~mask_NV, 0.0)
