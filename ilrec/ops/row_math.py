"""What happens to the logits of some rows between the two matrix products, in PyTorch: the five
sums and the gradient, in place.

The penalised log-sum-exp needs no second pass (docs/method.md, step 2; z' >= z on S, so every term
    is >= 0): lse' = lse + log1p(sum_S e^{z - lse} expm1(z' - z))

`ilrec.ops.reference` is the specification; triton_math.py is the same for CUDA.

Shape letters: N rows, J students (readout distributions), V vocabulary, C candidates (V where all
tokens are), S negatives of all rows in one flat list, E reward entries, T those of them that share
the soft target.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ilrec.ops.fused import Task

if TYPE_CHECKING:
    from ilrec.ops import Objective


class Negatives(NamedTuple):
    """S as a flat list, ascending in row; weights are w, logits are z, counts are |S_n|."""

    rows_S: Tensor
    tokens_S: Tensor
    weights_S: Tensor
    logits_S: Tensor
    counts_N: Tensor


class Support(NamedTuple):
    """The tokens that share the reward's soft target, each once a row: with their rewards and
    logits z."""

    rows_T: Tensor
    tokens_T: Tensor
    rewards_T: Tensor
    logits_T: Tensor


class Reward(NamedTuple):
    """loss_N; mass_N: sum of q, 1, or 0 where no reward is known; q itself on the support."""

    loss_N: Tensor
    mass_N: Tensor
    rows_T: Tensor
    tokens_T: Tensor
    shares_T: Tensor


def reduce_rows(
    z_NV: Tensor,
    students_JNC: Tensor,
    label_ze_N: Tensor | None,
    rows: slice,
    task: Task,
    want_gradient: bool,
) -> Tensor:
    """The five sums of ilrec.ops.STATS over some rows; logits become their gradients if wanted, and
    are consumed anyway.

    label_ze_N: the ensemble's logits of the labels, which need not be candidates; None without
        candidates.
    """
    objective, labels_N = task.objective, task.labels_N[rows]
    label_logits_N = z_NV.gather(1, labels_N[:, None])[:, 0]
    distillation_N, lse_N = torch.zeros_like(label_logits_N), None
    negatives = _no_negatives(z_NV)
    if len(students_JNC):
        ensemble_NC = students_JNC.mean(0)
        z_NC = z_NV if task.candidate_ids_C is None else z_NV.index_select(1, task.candidate_ids_C)
        if objective.needs_negatives:
            if label_ze_N is None:
                label_ze_N = ensemble_NC.gather(1, labels_N[:, None])[:, 0]
            negatives = _negatives(
                z_NC, ensemble_NC, label_logits_N, label_ze_N, labels_N, task, rows.start
            )
    # The logits of the support are taken now: what follows consumes them.
    rows_T, tokens_T, rewards_T = reward_places(
        negatives, labels_N, rows.start, z_NV.shape[1], task
    )
    support = Support(rows_T, tokens_T, rewards_T, z_NV[rows_T, tokens_T])
    if len(students_JNC) and objective.distillation_weight > 0:
        distillation_N, lse_N = _distil_(
            z_NC, students_JNC, ensemble_NC, objective.distillation_weight
        )
    if lse_N is None or task.candidate_ids_C is not None:
        lse_N = _softmax_(z_NV)
    preference_N, lift_N = preference(negatives, label_logits_N, lse_N, objective.beta)
    rewards = reward(support, lse_N, objective.reward_temperature)
    if want_gradient:
        _logit_gradient_(z_NV, negatives, labels_N, lse_N, lift_N, rewards, task)
    return torch.stack(
        [
            preference_N.sum(),
            distillation_N.sum(),
            rewards.loss_N.sum(),
            negatives.counts_N.sum().to(lse_N),
            (negatives.counts_N == 0).sum().to(lse_N),
        ]
    )


def _no_negatives(z_NV: Tensor) -> Negatives:
    nothing = torch.zeros(0, dtype=torch.int64, device=z_NV.device)
    return Negatives(
        nothing, nothing, z_NV.new_zeros(0), z_NV.new_zeros(0), nothing.new_zeros(len(z_NV))
    )


def thresholds(label_logits_N: Tensor, label_ze_N: Tensor, objective: Objective) -> Tensor:
    """Step 1: kappa."""
    if objective.threshold == "probability":
        return label_ze_N + math.log(objective.alpha)
    return objective.alpha * label_logits_N


def _negatives(
    z_NC: Tensor,
    ze_NC: Tensor,
    label_logits_N: Tensor,
    label_ze_N: Tensor,
    labels_N: Tensor,
    task: Task,
    start: int,
) -> Negatives:
    """Step 1: S and w, of the rows from `start` on."""
    objective, ids_C = task.objective, task.candidate_ids_C
    mask_NC = ze_NC >= thresholds(label_logits_N, label_ze_N, objective)[:, None]
    if ids_C is None:
        mask_NC.scatter_(1, labels_N[:, None], False)
    else:
        mask_NC &= ids_C != labels_N[:, None]
    if objective.limits_negatives:
        mask_NC &= continuation_mask(start, len(labels_N), mask_NC.shape[1], task)
    if 0 < objective.max_negatives < mask_NC.shape[1]:
        crowded_R = (_row_counts(mask_NC) > objective.max_negatives).nonzero()[:, 0]
        mask_NC[crowded_R] = _largest(ze_NC[crowded_R], mask_NC[crowded_R], objective.max_negatives)
    rows_S, columns_S = mask_NC.nonzero(as_tuple=True)
    counts_N = rows_S.bincount(minlength=len(labels_N))
    weights_S, _ = segment_softmax(ze_NC[rows_S, columns_S], rows_S, len(labels_N))
    tokens_S = columns_S if ids_C is None else ids_C[columns_S]
    return Negatives(rows_S, tokens_S, weights_S, z_NC[rows_S, columns_S], counts_N)


def continuation_mask(start: int, num_rows: int, vocab_size: int, task: Task) -> Tensor:
    """bool [num_rows, V]: the tokens that continue an item, for the rows from `start` on."""
    assert task.rewards is not None, "the operation checks that there are entries"
    keys_T, _ = row_entries(start, num_rows, vocab_size, task.rewards)
    mask_NV = torch.zeros((num_rows, vocab_size), dtype=torch.bool, device=keys_T.device)
    mask_NV.view(-1)[keys_T - start * vocab_size] = True
    return mask_NV


def row_entries(
    start: int, num_rows: int, vocab_size: int, entries: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of (keys_E, values_E), those of some rows."""
    keys_E, values_E = entries
    bounds = torch.tensor([start, start + num_rows], device=keys_E.device) * vocab_size
    begin, end = torch.searchsorted(keys_E, bounds).tolist()
    return keys_E[begin:end], values_E[begin:end]


def _row_counts(mask_NC: Tensor) -> Tensor:
    """Not mask.sum(1): that makes an int64 copy, twice the size of the float32 logits."""
    return mask_NC.nonzero()[:, 0].bincount(minlength=len(mask_NC))


def _largest(ze_NC: Tensor, mask_NC: Tensor, num_kept: int) -> Tensor:
    """The num_kept largest entries of each row's mask (which has at least so many); ties to the
    smaller id."""
    masked_NC = ze_NC.masked_fill(~mask_NC, -math.inf)
    last_N1 = masked_NC.topk(num_kept, dim=1).values[:, -1:]
    above_NC, tied_NC = mask_NC & (masked_NC > last_N1), mask_NC & (masked_NC == last_N1)
    room_N1 = num_kept - above_NC.sum(1, keepdim=True)
    return above_NC | (tied_NC & (tied_NC.cumsum(1, dtype=torch.int32) <= room_N1))


def _distil_(
    z_NC: Tensor, students_JNC: Tensor, ze_NC: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Step 3: mean_j KL(P || P_j) = sum_v P_v (z_v - mean_j z_jv) - lse + mean_j lse_j, and mean_j
    z_j is ze; also lse.

    Students become their gradients, z becomes P, ze is consumed.
    """
    gap_NC = torch.sub(z_NC, ze_NC, out=ze_NC)
    lse_N, lse_JN = _softmax_(z_NC), _softmax_(students_JNC)
    gap_NC.mul_(z_NC)
    moment_N = gap_NC.sum(1)
    if bool(moment_N.isnan().any()):  # a logit that overflowed to -inf has P = 0, and 0 * inf here
        moment_N = gap_NC.masked_fill_(z_NC == 0, 0.0).sum(1)
    students_JNC.sub_(z_NC).mul_(weight / len(students_JNC))
    return moment_N - lse_N + lse_JN.mean(0), lse_N


def _penalty(negatives: Negatives, beta: float) -> Tensor:
    """beta w |z| on S. A logit that overflowed to -inf stays there."""
    penalty_S = beta * negatives.weights_S * negatives.logits_S.abs()
    return penalty_S.masked_fill_(negatives.logits_S == -math.inf, 0.0)


def preference(
    negatives: Negatives, label_logits_N: Tensor, lse_N: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Step 2: the loss [N], and lift = lse' - lse >= 0, exactly 0 where S is empty.

    The identity of the module docstring in logarithms, e^d - 1 = e^d (1 - e^-d): a large penalty
    cannot overflow.
    """
    penalty_S = _penalty(negatives, beta)
    log_terms_S = (
        negatives.logits_S - lse_N[negatives.rows_S] + penalty_S + (-torch.expm1(-penalty_S)).log()
    )
    _, log_sum_N = segment_softmax(log_terms_S, negatives.rows_S, len(lse_N))
    lift_N = torch.logaddexp(log_sum_N, torch.zeros_like(log_sum_N))
    return lse_N + lift_N - label_logits_N, lift_N


def reward_places(
    negatives: Negatives, labels_N: Tensor, start: int, vocab_size: int, task: Task
) -> tuple[Tensor, Tensor, Tensor]:
    """Step 4: the support of the soft target as (rows_T, tokens_T, rewards_T), for the rows from
    `start` on.

    Rows are counted from `start`. `negatives`: S and the label, with reward 0 where the crowd knows
    nothing of a token.
    `continuations`: all entries of these rows.
    """
    if task.rewards is None or len(task.rewards[0]) == 0 or task.objective.reward_weight == 0:
        nothing = labels_N[:0]
        return nothing, nothing, negatives.weights_S[:0]
    if task.objective.reward_tokens == "continuations":
        keys_T, rewards_T = row_entries(start, len(labels_N), vocab_size, task.rewards)
        return keys_T // vocab_size - start, keys_T % vocab_size, rewards_T
    keys_E, values_E = task.rewards
    rows_T = torch.cat([negatives.rows_S, torch.arange(len(labels_N), device=labels_N.device)])
    tokens_T = torch.cat([negatives.tokens_S, labels_N])
    keys_T = (start + rows_T) * vocab_size + tokens_T
    found_T = torch.searchsorted(keys_E, keys_T).clamp_(max=len(keys_E) - 1)
    return rows_T, tokens_T, values_E[found_T].masked_fill(keys_E[found_T] != keys_T, 0.0)


def reward(support: Support, lse_N: Tensor, temperature: float) -> Reward:
    """Step 4: the loss and q."""
    rows_T = support.rows_T
    log_rewards_T = support.rewards_T.to(lse_N).log() / temperature
    shares_T, log_mass_N = segment_softmax(log_rewards_T, rows_T, len(lse_N))
    # 0 * inf would be NaN where a logit overflowed and the crowd does not know the token.
    terms_T = (shares_T * (lse_N[rows_T] - support.logits_T)).masked_fill_(shares_T == 0, 0.0)
    loss_N = torch.zeros_like(lse_N).index_add_(0, rows_T, terms_T)
    return Reward(loss_N, (log_mass_N > -math.inf).to(lse_N), rows_T, support.tokens_T, shares_T)


def _logit_gradient_(
    p_NV: Tensor,
    negatives: Negatives,
    labels_N: Tensor,
    lse_N: Tensor,
    lift_N: Tensor,
    reward: Reward,
    task: Task,
) -> None:
    """P becomes d(preference + mu * reward)/dz: P' dz'/dz - [y] + mu (mass P - q): a scaled P but
    on S, y and q."""
    rows_S, mu, beta = negatives.rows_S, task.objective.reward_weight, task.objective.beta
    slope_S = 1 + beta * negatives.weights_S * negatives.logits_S.sign()
    log_p_S = negatives.logits_S - lse_N[rows_S]
    grad_S = (log_p_S + _penalty(negatives, beta) - lift_N[rows_S]).exp() * slope_S
    grad_S += mu * reward.mass_N[rows_S] * log_p_S.exp()
    p_NV.mul_(((-lift_N).exp() + mu * reward.mass_N)[:, None])
    p_NV.index_put_((rows_S, negatives.tokens_S), grad_S)
    p_NV.scatter_add_(1, labels_N[:, None], p_NV.new_full((len(labels_N), 1), -1.0))
    p_NV.index_put_((reward.rows_T, reward.tokens_T), -mu * reward.shares_T, accumulate=True)


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place; returns the log-sum-exp."""
    largest = logits.amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.div_(total)
    return (total.log() + largest)[..., 0]


def segment_softmax(values_S: Tensor, rows_S: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp within each row of a flat list; -inf entries get 0, a row without
    finite ones -inf."""
    largest_N = values_S.new_full((num_rows,), -math.inf).scatter_reduce_(
        0, rows_S, values_S, "amax"
    )
    # -inf - -inf would be NaN.
    largest_N = largest_N.masked_fill(largest_N == -math.inf, 0.0)
    exp_S = (values_S - largest_N[rows_S]).exp()
    total_N = torch.zeros_like(largest_N).index_add_(0, rows_S, exp_S)
    weights_S = exp_S / total_N.masked_fill(total_N == 0, 1.0)[rows_S]
    return weights_S, total_N.log() + largest_N
