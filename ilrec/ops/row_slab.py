"""The ILRec objective in slabs of rows: the whole loss and all gradients from one pass over the logits.

Why: [N, V] logits of 1 + K heads do not fit, and autograd would keep several copies. Here a slab of supervised rows
is projected (last layer and readout rows stacked, so each tile of the head is read once for both), reduced to row
statistics, turned into its own gradient in place, and projected back. The backward pass only scales what the forward
pass made; evaluation skips the gradients. Low-precision input gets float32 logits: rounded ones flip selections.

The penalised log-sum-exp needs no second pass (docs/method.md, step 2; z' >= z on S, so every term is >= 0):
    lse' = lse + log1p(sum_S e^{z - lse} expm1(z' - z))

Called through `ilrec.ops.cross_layer_loss(..., backend="row_slab")`; `ilrec.ops.reference` is the specification.

Shape letters: N supervised tokens (of the slab, inside it), J students (readout distributions), G = 1 + J stacked row
groups, H hidden, V vocabulary, C candidates, S negatives of all rows in one flat list, R new tokens, E reward entries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ilrec.ops import head_gemm

if TYPE_CHECKING:
    from ilrec.ops import Objective

# Memory for logits. CPU: measured with H = 576, float32, one core (32 MiB L3), (N, V) = (256, 32,000), (1,024, 32,000),
# (128, 128,256): 64 MiB is within 15 % of the fastest of 8 to 256 MiB, 32 MiB is up to 40 % slower.
# CUDA: by arithmetic, not measured: 520 rows at V = 128,256; an H100's bf16 GEMM is compute-bound above 300.
SLAB_BYTES = {"cpu": 64 * 2**20, "cuda": 800 * 10**6}


class _Task(NamedTuple):
    """All that is not differentiated. `rewards`: (keys_E, values_E), key = row * V + token, ascending."""

    labels_N: Tensor
    objective: Objective
    candidates_V: Tensor | None
    candidate_ids_C: Tensor | None
    rewards: tuple[Tensor, Tensor] | None
    new_token_ids_R: Tensor | None
    slab_bytes: int
    wanted: tuple[bool, ...]  # gradients to make: hidden, students, head, new-token rows


class _Negatives(NamedTuple):
    """S of a slab's rows as a flat list, ascending in row; weights are w, logits are z, counts are |S_n|."""

    rows_S: Tensor
    tokens_S: Tensor
    weights_S: Tensor
    logits_S: Tensor
    counts_N: Tensor


class _Reward(NamedTuple):
    loss_N: Tensor
    mass_N: Tensor  # sum of q: 1, or 0 where no reward is known
    negatives_S: Tensor  # q on the negatives
    labels_N: Tensor  # q on the labels


def cross_layer_sums(
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    labels_N: Tensor,
    *,
    objective: Objective,
    candidates_V: Tensor | None,
    rewards: tuple[Tensor, Tensor] | None,
    new_tokens: tuple[Tensor, Tensor] | None,
    slab_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """As `ilrec.ops.reference.cross_layer_sums`, in slabs of slab_bytes (None: SLAB_BYTES), one row at least."""
    students_JNH = _students(hidden_NH, readout_KNH, objective)
    ids_R, rows_RH = new_tokens if new_tokens is not None else (None, None)
    inputs = (hidden_NH, students_JNH, lm_head_VH, rows_RH)
    # Decided here, because inside a Function needs_input_grad is set under no_grad too.
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    candidate_ids_C = None if candidates_V is None else candidates_V.nonzero()[:, 0]
    task = _Task(
        labels_N, objective, candidates_V, candidate_ids_C, rewards, ids_R,
        slab_bytes or SLAB_BYTES.get(hidden_NH.device.type, SLAB_BYTES["cuda"]), tuple(wanted))
    loss_sum, stats_5 = _RowSlab.apply(*inputs, task)  # type: ignore[no-untyped-call]
    return loss_sum, stats_5


def _students(hidden_NH: Tensor, readout_KNH: Tensor | None, objective: Objective) -> Tensor:
    """The readout states whose distributions are needed. Their mean is always the ensemble: the head is linear."""
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    if readout_KNH is None:
        return hidden_NH.new_empty((0, *hidden_NH.shape), dtype=dtype)
    if objective.distillation_weight == 0:
        return readout_KNH.detach().to(dtype).mean(0, keepdim=True)
    readout_KNH = readout_KNH.to(dtype)
    return readout_KNH if objective.distillation_target == "per_layer" else readout_KNH.mean(0, keepdim=True)


class _RowSlab(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, students_JNH: Tensor, lm_head_VH: Tensor, rows_RH: Tensor | None, task: _Task
    ) -> tuple[Tensor, Tensor]:
        states_GNH = torch.cat([hidden_NH.to(students_JNH.dtype)[None], students_JNH])
        num_groups, num_rows, _ = states_GNH.shape
        inputs = (hidden_NH, students_JNH, lm_head_VH, rows_RH)
        grads = [torch.zeros_like(tensor, dtype=states_GNH.dtype) if tensor is not None and want else None
                 for tensor, want in zip(inputs, task.wanted, strict=True)]
        new_tokens = None if rows_RH is None or task.new_token_ids_R is None else (task.new_token_ids_R, rows_RH)
        # One more than the groups: the row statistics need a scratch row beside the logits (12 V bytes for z and ze).
        row_bytes = (num_groups + 1) * len(lm_head_VH) * states_GNH.element_size()
        slab_rows = min(num_rows, max(1, task.slab_bytes // row_bytes))
        slab_MV = states_GNH.new_empty((num_groups * slab_rows, len(lm_head_VH)))
        sums_5 = states_GNH.new_zeros(5)
        for start in range(0, num_rows, slab_rows):
            rows = slice(start, min(start + slab_rows, num_rows))
            states = states_GNH[:, rows]
            logits_GNV = head_gemm.project(states, lm_head_VH, new_tokens, slab_MV)
            sums_5 += _loss_and_gradient_(logits_GNV, rows, task)
            if any(task.wanted):
                head_gemm.project_back(logits_GNV, states, lm_head_VH, new_tokens, rows, grads)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        objective = task.objective
        loss_sum = sums_5[0] + objective.distillation_weight * sums_5[1] + objective.reward_weight * sums_5[2]
        stats_5 = sums_5.to(torch.float32, copy=True)
        ctx.mark_non_differentiable(stats_5)
        return loss_sum, stats_5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: a second backward pass (retain_graph) must find the saved gradients as they were.
        scaled = [None if grad is None else (grad * grad_loss).to(dtype)
                  for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*scaled, None)


def _loss_and_gradient_(logits_GNV: Tensor, rows: slice, task: _Task) -> Tensor:
    """The five sums of a slab; the logits are overwritten, by their gradients if any is wanted."""
    z_NV, students_JNV = logits_GNV[0], logits_GNV[1:]
    objective, labels_N = task.objective, task.labels_N[rows]
    label_logits_N = z_NV.gather(1, labels_N[:, None])[:, 0]
    distillation_N = torch.zeros_like(label_logits_N)
    negatives = _no_negatives(z_NV)
    lse_N = None
    if len(students_JNV):
        ensemble_NV = students_JNV.mean(0)
        if objective.needs_negatives:
            negatives = _negatives(z_NV, ensemble_NV, labels_N, task)
        if objective.distillation_weight > 0:
            distillation_N, lse_N = _distil_(z_NV, students_JNV, ensemble_NV, task)
    if lse_N is None:
        lse_N = _softmax_(z_NV)
    preference_N, lift_N = _preference(negatives, label_logits_N, lse_N, objective.beta)
    reward = _reward(negatives, labels_N, label_logits_N, lse_N, rows.start, z_NV.shape[1], task)
    if any(task.wanted):
        _logit_gradient_(z_NV, negatives, labels_N, lse_N, lift_N, reward, objective)
    return torch.stack([
        preference_N.sum(), distillation_N.sum(), reward.loss_N.sum(),
        negatives.counts_N.sum().to(lse_N), (negatives.counts_N == 0).sum().to(lse_N)])


def _no_negatives(z_NV: Tensor) -> _Negatives:
    nothing = torch.zeros(0, dtype=torch.int64, device=z_NV.device)
    return _Negatives(nothing, nothing, z_NV.new_zeros(0), z_NV.new_zeros(0), nothing.new_zeros(len(z_NV)))


def _negatives(z_NV: Tensor, ze_NV: Tensor, labels_N: Tensor, task: _Task) -> _Negatives:
    """Step 1: S and w."""
    label_N1, objective = labels_N[:, None], task.objective
    if objective.threshold == "probability":
        kappa_N1 = ze_NV.gather(1, label_N1) + math.log(objective.alpha)
    else:
        kappa_N1 = objective.alpha * z_NV.gather(1, label_N1)
    mask_NV = (ze_NV >= kappa_N1).scatter_(1, label_N1, False)
    if task.candidates_V is not None:
        mask_NV &= task.candidates_V
    counts_N = mask_NV.sum(1)
    if 0 < objective.max_negatives < mask_NV.shape[1]:
        crowded_R = (counts_N > objective.max_negatives).nonzero()[:, 0]
        mask_NV[crowded_R] = _largest(ze_NV[crowded_R], mask_NV[crowded_R], objective.max_negatives)
        counts_N = counts_N.clamp(max=objective.max_negatives)
    rows_S, tokens_S = mask_NV.nonzero(as_tuple=True)
    weights_S, _ = _segment_softmax(ze_NV[rows_S, tokens_S], rows_S, len(labels_N))
    return _Negatives(rows_S, tokens_S, weights_S, z_NV[rows_S, tokens_S], counts_N)


def _largest(ze_NV: Tensor, mask_NV: Tensor, num_kept: int) -> Tensor:
    """The num_kept largest entries of each row's mask (which has at least so many); ties to the smaller id."""
    masked_NV = ze_NV.masked_fill(~mask_NV, -math.inf)
    last_N1 = masked_NV.topk(num_kept, dim=1).values[:, -1:]
    above_NV, tied_NV = masked_NV > last_N1, masked_NV == last_N1
    room_N1 = num_kept - above_NV.sum(1, keepdim=True)
    return above_NV | (tied_NV & (tied_NV.cumsum(1, dtype=torch.int32) <= room_N1))


def _distil_(z_NV: Tensor, students_JNV: Tensor, ze_NV: Tensor, task: _Task) -> tuple[Tensor, Tensor | None]:
    """Step 3: KL [N]; students become their gradients, ze is consumed.

    Over the whole vocabulary z becomes P, and its log-sum-exp is returned; over candidates z is left alone.
    """
    if task.candidate_ids_C is None:
        return _distil_full_(z_NV, students_JNV, ze_NV, task.objective.distillation_weight)
    ids_C = task.candidate_ids_C
    students_JNC = students_JNV.index_select(2, ids_C)
    distillation_N, _ = _distil_full_(
        z_NV.index_select(1, ids_C), students_JNC, ze_NV.index_select(1, ids_C), task.objective.distillation_weight)
    students_JNV.zero_().index_copy_(2, ids_C, students_JNC)
    return distillation_N, None


def _distil_full_(z_NV: Tensor, students_JNV: Tensor, ze_NV: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """mean_j KL(P || P_j) = sum_v P_v (z_v - mean_j z_jv) - lse + mean_j lse_j, and mean_j z_j is ze."""
    gap_NV = torch.sub(z_NV, ze_NV, out=ze_NV)
    lse_N, lse_JN = _softmax_(z_NV), _softmax_(students_JNV)
    distillation_N = gap_NV.mul_(z_NV).sum(1) - lse_N + lse_JN.mean(0)
    students_JNV.sub_(z_NV).mul_(weight / len(students_JNV))
    return distillation_N, lse_N


def _preference(negatives: _Negatives, label_logits_N: Tensor, lse_N: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Step 2: the loss [N], and lift = lse' - lse >= 0, exactly 0 where S is empty.

    The identity of the module docstring in logarithms, e^d - 1 = e^d (1 - e^-d): a large penalty cannot overflow.
    """
    penalty_S = beta * negatives.weights_S * negatives.logits_S.abs()
    log_terms_S = negatives.logits_S - lse_N[negatives.rows_S] + penalty_S + (-torch.expm1(-penalty_S)).log()
    _, log_sum_N = _segment_softmax(log_terms_S, negatives.rows_S, len(lse_N))
    lift_N = torch.logaddexp(log_sum_N, torch.zeros_like(log_sum_N))
    return lse_N + lift_N - label_logits_N, lift_N


def _reward(
    negatives: _Negatives, labels_N: Tensor, label_logits_N: Tensor, lse_N: Tensor, start: int, vocab_size: int,
    task: _Task,
) -> _Reward:
    """Step 4 over S and y: the loss and q."""
    if task.rewards is None or len(task.rewards[0]) == 0:
        nothing_N = torch.zeros_like(lse_N)
        return _Reward(nothing_N, nothing_N, torch.zeros_like(negatives.logits_S), nothing_N)
    keys_E, values_E = task.rewards
    rows_T = torch.cat([negatives.rows_S, torch.arange(len(labels_N), device=labels_N.device)])
    keys_T = (start + rows_T) * vocab_size + torch.cat([negatives.tokens_S, labels_N])
    found_T = torch.searchsorted(keys_E, keys_T).clamp_(max=len(keys_E) - 1)
    reward_T = values_E[found_T].to(lse_N).masked_fill(keys_E[found_T] != keys_T, 0.0)
    target_T, log_mass_N = _segment_softmax(reward_T.log() / task.objective.reward_temperature, rows_T, len(labels_N))
    negative_logp_T = lse_N[rows_T] - torch.cat([negatives.logits_S, label_logits_N])
    loss_N = torch.zeros_like(lse_N).index_add_(0, rows_T, target_T * negative_logp_T)
    num_negatives = len(negatives.rows_S)
    return _Reward(loss_N, (log_mass_N > -math.inf).to(lse_N), target_T[:num_negatives], target_T[num_negatives:])


def _logit_gradient_(
    p_NV: Tensor, negatives: _Negatives, labels_N: Tensor, lse_N: Tensor, lift_N: Tensor, reward: _Reward,
    objective: Objective,
) -> None:
    """P becomes d(preference + mu * reward)/dz: P' dz'/dz - [y] + mu (mass P - q): a scaled P but on S and y."""
    rows_S, mu = negatives.rows_S, objective.reward_weight
    penalty_S = objective.beta * negatives.weights_S * negatives.logits_S.abs()
    slope_S = 1 + objective.beta * negatives.weights_S * negatives.logits_S.sign()
    log_p_S = negatives.logits_S - lse_N[rows_S]
    grad_S = (log_p_S + penalty_S - lift_N[rows_S]).exp() * slope_S
    grad_S += mu * (reward.mass_N[rows_S] * log_p_S.exp() - reward.negatives_S)
    p_NV.mul_(((-lift_N).exp() + mu * reward.mass_N)[:, None])
    p_NV.index_put_((rows_S, negatives.tokens_S), grad_S)
    p_NV.scatter_add_(1, labels_N[:, None], -(1 + mu * reward.labels_N)[:, None])


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in place; returns the log-sum-exp."""
    largest = logits.amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.div_(total)
    return (total.log() + largest)[..., 0]


def _segment_softmax(values_S: Tensor, rows_S: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp within each row of a flat list; -inf entries get 0, a row without finite ones -inf."""
    largest_N = values_S.new_full((num_rows,), -math.inf).scatter_reduce_(0, rows_S, values_S, "amax")
    # -inf - -inf would be NaN.
    largest_N = largest_N.masked_fill(largest_N == -math.inf, 0.0)
    exp_S = (values_S - largest_N[rows_S]).exp()
    total_N = torch.zeros_like(largest_N).index_add_(0, rows_S, exp_S)
    weights_S = exp_S / total_N.masked_fill(total_N == 0, 1.0)[rows_S]
    return weights_S, total_N.log() + largest_N
