"""What happens to the logits of some rows between the two matrix products, in PyTorch: their sums
and their gradient, in place.

The penalised log-sum-exp needs no second pass over the vocabulary (docs/method.md, step 2; z' >= z
on S, so that every term is >= 0):

    lse' = lse + log1p(sum_S e^(z - lse) expm1(z' - z))

`ilrec.ops.reference` is the specification; triton_math.py is the same for CUDA. A name that ends in
`_` changes its arguments in place, as in torch.

Shape letters: N rows, J students (readout distributions), V vocabulary, C candidates (V where all
tokens are), S negatives of all rows in one flat list, E reward entries, T those of them that share
the soft target.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ilrec.ops.objective import Objective, TermSums
from ilrec.ops.row_inputs import RowInputs


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
    """loss_N; mass_N: the sum of q, which is 1, or 0 where no reward is known; and q itself
    (shares_T) on the support."""

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
    inputs: RowInputs,
    want_gradient: bool,
) -> TermSums:
    """The sums over some rows. The logits become their gradients if these are wanted, and are
    overwritten in any case.

    label_ze_N: the ensemble's logits of the labels, which need not be candidates; None where all
        tokens are candidates.
    """
    objective, labels_N = inputs.objective, inputs.labels_N[rows]
    label_logits_N = z_NV.gather(1, labels_N[:, None])[:, 0]
    distillation_N, lse_N = torch.zeros_like(label_logits_N), None

    # Step 1. Everything that is read from the logits is read now, because steps 2 and 3 overwrite
    # them: first the negatives, then the support of the reward.
    negatives = _no_negatives(z_NV)
    if len(students_JNC):
        ensemble_NC = students_JNC.mean(0)
        z_NC = z_NV
        if inputs.candidate_ids_C is not None:
            z_NC = z_NV.index_select(1, inputs.candidate_ids_C)
        if objective.needs_negatives:
            negatives = _negatives(z_NC, ensemble_NC, label_logits_N, label_ze_N, inputs, rows)
    rows_T, tokens_T, rewards_T = reward_places(
        negatives, labels_N, rows.start, z_NV.shape[1], inputs
    )
    support = Support(rows_T, tokens_T, rewards_T, z_NV[rows_T, tokens_T])

    # Step 3, and the log-sum-exp of z, which distillation gives as well where all tokens are
    # candidates. From here on z_NV holds P.
    if len(students_JNC) and objective.distillation_weight > 0:
        distillation_N, lse_N = _distil_(
            z_NC, students_JNC, ensemble_NC, objective.distillation_weight
        )
    if lse_N is None or inputs.candidate_ids_C is not None:
        lse_N = _softmax_(z_NV)

    # Steps 2 and 4, which need only what was kept of the logits. Then P becomes the gradient.
    preference_N, lift_N = preference(negatives, label_logits_N, lse_N, objective.beta)
    rewards = reward(support, lse_N, objective.reward_temperature)
    if want_gradient:
        _logit_gradient_(z_NV, negatives, labels_N, lse_N, lift_N, rewards, inputs)
    return TermSums(
        preference=preference_N.sum(),
        distillation=distillation_N.sum(),
        reward=rewards.loss_N.sum(),
        num_negatives=negatives.counts_N.sum().to(lse_N),
        num_rows_without_negative=(negatives.counts_N == 0).sum().to(lse_N),
    )


def _no_negatives(z_NV: Tensor) -> Negatives:
    ids_S = torch.zeros(0, dtype=torch.int64, device=z_NV.device)
    values_S = z_NV.new_zeros(0)
    return Negatives(ids_S, ids_S, values_S, values_S, ids_S.new_zeros(len(z_NV)))


def thresholds(label_logits_N: Tensor, label_ze_N: Tensor, objective: Objective) -> Tensor:
    """Step 1: kappa."""
    if objective.threshold == "probability":
        return label_ze_N + math.log(objective.alpha)
    return objective.alpha * label_logits_N


def _negatives(
    z_NC: Tensor,
    ze_NC: Tensor,
    label_logits_N: Tensor,
    label_ze_N: Tensor | None,
    inputs: RowInputs,
    rows: slice,
) -> Negatives:
    """Step 1: S and w of some rows."""
    objective, labels_N = inputs.objective, inputs.labels_N[rows]
    if label_ze_N is None:
        label_ze_N = ze_NC.gather(1, labels_N[:, None])[:, 0]
    mask_NC = _negative_mask(ze_NC, label_logits_N, label_ze_N, inputs, rows)
    # From here on only the entries of S are touched, which are few.
    rows_S, columns_S = mask_NC.nonzero(as_tuple=True)
    counts_N = rows_S.bincount(minlength=len(labels_N))
    if inputs.draw is not None:
        # Only the numbers are kept of what the readout proposed. All tokens are candidates here.
        rows_S, columns_S = inputs.draw.of_rows(rows).take(counts_N, labels_N)
    tokens_S = columns_S
    if inputs.candidate_ids_C is not None:
        tokens_S = inputs.candidate_ids_C[columns_S]
    ze_S = ze_NC[rows_S, columns_S] / objective.weight_temperature
    weights_S, _ = segment_softmax(ze_S, rows_S, len(labels_N))
    return Negatives(rows_S, tokens_S, weights_S, z_NC[rows_S, columns_S], counts_N)


def _negative_mask(
    ze_NC: Tensor,
    label_logits_N: Tensor,
    label_ze_N: Tensor,
    inputs: RowInputs,
    rows: slice,
) -> Tensor:
    """Step 1: S as the readout proposes it, bool [N, C]."""
    objective, labels_N = inputs.objective, inputs.labels_N[rows]
    mask_NC = ze_NC >= thresholds(label_logits_N, label_ze_N, objective)[:, None]
    if inputs.candidate_ids_C is None:
        mask_NC.scatter_(1, labels_N[:, None], False)
    else:
        mask_NC &= inputs.candidate_ids_C != labels_N[:, None]
    if objective.limits_negatives:
        mask_NC &= continuation_mask(rows.start, len(labels_N), mask_NC.shape[1], inputs)
    # The cap costs a sort of the row, so only rows with more negatives than that are looked at.
    if 0 < objective.max_negatives < mask_NC.shape[1]:
        crowded_R = (_row_counts(mask_NC) > objective.max_negatives).nonzero()[:, 0]
        mask_NC[crowded_R] = _largest(ze_NC[crowded_R], mask_NC[crowded_R], objective.max_negatives)
    return mask_NC


def continuation_mask(start: int, num_rows: int, vocab_size: int, inputs: RowInputs) -> Tensor:
    """bool [num_rows, V]: the tokens that continue an item, for the rows from `start` on."""
    assert inputs.rewards is not None, "the operation checks that there are entries"
    keys_T, _ = row_entries(start, num_rows, vocab_size, inputs.rewards)
    mask_NV = torch.zeros((num_rows, vocab_size), dtype=torch.bool, device=keys_T.device)
    mask_NV.view(-1)[keys_T - start * vocab_size] = True
    return mask_NV


def row_entries(
    start: int, num_rows: int, vocab_size: int, entries: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Those of (keys_E, values_E) that belong to num_rows rows from `start` on."""
    keys_E, values_E = entries
    bounds = torch.tensor([start, start + num_rows], device=keys_E.device) * vocab_size
    begin, end = torch.searchsorted(keys_E, bounds).tolist()
    return keys_E[begin:end], values_E[begin:end]


def _row_counts(mask_NC: Tensor) -> Tensor:
    """The number of True entries in each row, [N].

    Not by mask.sum(1), which makes an int64 copy, twice the size of the float32 logits.
    """
    return mask_NC.nonzero()[:, 0].bincount(minlength=len(mask_NC))


def _largest(ze_NC: Tensor, mask_NC: Tensor, num_kept: int) -> Tensor:
    """The num_kept largest entries of each row's mask; of equal ones those with the smaller id.
    Each row has at least num_kept entries."""
    masked_NC = ze_NC.masked_fill(~mask_NC, -math.inf)
    last_N1 = masked_NC.topk(num_kept, dim=1).values[:, -1:]
    # All that are larger than the last one that fits, and as many equal ones as there is room for.
    above_NC = mask_NC & (masked_NC > last_N1)
    tied_NC = mask_NC & (masked_NC == last_N1)
    room_N1 = num_kept - above_NC.sum(1, keepdim=True)
    return above_NC | (tied_NC & (tied_NC.cumsum(1, dtype=torch.int32) <= room_N1))


def _distil_(
    z_NC: Tensor, students_JNC: Tensor, ze_NC: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Step 3: (loss_N, lse_N), the distillation and the log-sum-exp of z.

    mean_j KL(P || P_j) = sum_v P_v (z_v - ze_v) - lse + mean_j lse_j, because ze = mean_j z_j.
    The students become their gradients, z becomes P, and ze is overwritten.
    """
    gap_NC = torch.sub(z_NC, ze_NC, out=ze_NC)
    lse_N, lse_JN = _softmax_(z_NC), _softmax_(students_JNC)
    gap_NC.mul_(z_NC)
    moment_N = gap_NC.sum(1)
    # A logit that overflowed to -inf has P = 0, and 0 * inf is NaN.
    if bool(moment_N.isnan().any()):
        moment_N = gap_NC.masked_fill_(z_NC == 0, 0.0).sum(1)
    students_JNC.sub_(z_NC).mul_(weight / len(students_JNC))
    return moment_N - lse_N + lse_JN.mean(0), lse_N


def _penalty(negatives: Negatives, beta: float) -> Tensor:
    """z' - z on S: beta w |z|, and 0 for a logit that overflowed to -inf, which stays there."""
    penalty_S = beta * negatives.weights_S * negatives.logits_S.abs()
    return penalty_S.masked_fill_(negatives.logits_S == -math.inf, 0.0)


def preference(
    negatives: Negatives, label_logits_N: Tensor, lse_N: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Step 2: the loss [N], and lift = lse' - lse >= 0, exactly 0 where S is empty.

    The identity of the module docstring in logarithms, so that a large penalty d cannot overflow:
    e^d - 1 = e^d (1 - e^-d).
    """
    penalty_S = _penalty(negatives, beta)
    log_p_S = negatives.logits_S - lse_N[negatives.rows_S]
    log_terms_S = log_p_S + penalty_S + (-torch.expm1(-penalty_S)).log()
    _, log_sum_N = segment_softmax(log_terms_S, negatives.rows_S, len(lse_N))
    lift_N = torch.logaddexp(log_sum_N, torch.zeros_like(log_sum_N))
    return lse_N + lift_N - label_logits_N, lift_N


def reward_places(
    negatives: Negatives, labels_N: Tensor, start: int, vocab_size: int, inputs: RowInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Step 4: the support of the soft target as (rows_T, tokens_T, rewards_T), for the rows from
    `start` on. Rows are counted from `start`.

    reward_tokens `negatives`: S and the label; a token without an entry has reward 0.
    reward_tokens `continuations`: all entries of these rows.
    """
    weight = inputs.objective.reward_weight
    if inputs.rewards is None or len(inputs.rewards[0]) == 0 or weight == 0:
        nothing = labels_N[:0]
        return nothing, nothing, negatives.weights_S[:0]
    if inputs.objective.reward_tokens == "continuations":
        keys_T, rewards_T = row_entries(start, len(labels_N), vocab_size, inputs.rewards)
        return keys_T // vocab_size - start, keys_T % vocab_size, rewards_T
    # Keys are ascending, so a token's entry is found by bisection, or is not there.
    keys_E, values_E = inputs.rewards
    rows_T = torch.cat([negatives.rows_S, torch.arange(len(labels_N), device=labels_N.device)])
    tokens_T = torch.cat([negatives.tokens_S, labels_N])
    keys_T = (start + rows_T) * vocab_size + tokens_T
    found_T = torch.searchsorted(keys_E, keys_T).clamp_(max=len(keys_E) - 1)
    rewards_T = values_E[found_T].masked_fill(keys_E[found_T] != keys_T, 0.0)
    return rows_T, tokens_T, rewards_T


def reward(support: Support, lse_N: Tensor, temperature: float) -> Reward:
    """Step 4: the loss and q."""
    rows_T = support.rows_T
    log_rewards_T = support.rewards_T.to(lse_N).log() / temperature
    shares_T, log_mass_N = segment_softmax(log_rewards_T, rows_T, len(lse_N))
    terms_T = shares_T * (lse_N[rows_T] - support.logits_T)
    # 0 * inf would be NaN where a logit overflowed and the token has no share.
    terms_T.masked_fill_(shares_T == 0, 0.0)
    loss_N = torch.zeros_like(lse_N).index_add_(0, rows_T, terms_T)
    mass_N = (log_mass_N > -math.inf).to(lse_N)
    return Reward(loss_N, mass_N, rows_T, support.tokens_T, shares_T)


def _logit_gradient_(
    p_NV: Tensor,
    negatives: Negatives,
    labels_N: Tensor,
    lse_N: Tensor,
    lift_N: Tensor,
    reward: Reward,
    inputs: RowInputs,
) -> None:
    """P becomes d(preference + mu * reward)/dz = P' dz'/dz - [y] + mu (mass P - q).

    That is P times a number of the row, except on S, at the label and where q > 0.
    """
    rows_S, mu, beta = negatives.rows_S, inputs.objective.reward_weight, inputs.objective.beta

    # The values on S, from the logits that were kept.
    slope_S = 1 + beta * negatives.weights_S * negatives.logits_S.sign()
    log_p_S = negatives.logits_S - lse_N[rows_S]
    grad_S = (log_p_S + _penalty(negatives, beta) - lift_N[rows_S]).exp() * slope_S
    grad_S += mu * reward.mass_N[rows_S] * log_p_S.exp()

    # Everywhere P' = P e^-lift; then the exceptions.
    p_NV.mul_(((-lift_N).exp() + mu * reward.mass_N)[:, None])
    p_NV.index_put_((rows_S, negatives.tokens_S), grad_S)
    p_NV.scatter_add_(1, labels_N[:, None], p_NV.new_full((len(labels_N), 1), -1.0))
    p_NV.index_put_((reward.rows_T, reward.tokens_T), -mu * reward.shares_T, accumulate=True)


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place. Returns the log-sum-exp."""
    largest = logits.amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.div_(total)
    return (total.log() + largest)[..., 0]


def segment_softmax(values_S: Tensor, rows_S: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """(softmax_S, lse_N) within each row of a flat list. An entry of -inf gets 0, and a row without
    a finite entry has the log-sum-exp -inf."""
    lowest_N = values_S.new_full((num_rows,), -math.inf)
    largest_N = lowest_N.scatter_reduce_(0, rows_S, values_S, "amax")
    # -inf - -inf would be NaN.
    largest_N = largest_N.masked_fill(largest_N == -math.inf, 0.0)
    exp_S = (values_S - largest_N[rows_S]).exp()
    total_N = torch.zeros_like(largest_N).index_add_(0, rows_S, exp_S)
    weights_S = exp_S / total_N.masked_fill(total_N == 0, 1.0)[rows_S]
    return weights_S, total_N.log() + largest_N
