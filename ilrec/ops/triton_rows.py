"""The Triton kernel behind row_slab on CUDA: all that happens to whole rows of logits between the
two matrix products.

One program per row does it: statistics, hard negatives, penalised loss, KL, reward, and the
    gradient in place. Nothing is summed
across programs: no atomics, bitwise repeatable. Logits are float32.

Imported only when a kernel is needed: `import ilrec` works without triton. On the CPU the kernels
run in Triton's interpreter (TRITON_INTERPRET=1 before triton is imported), which is how they are
tested without a GPU.

Shape letters: N rows, V vocabulary, J students, C columns of the students' logits (V, or the
    candidates), E reward entries.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ilrec.ops.fused import Task
from ilrec.ops.row_math import continuation_mask
from ilrec.ops.triton_math import (
    ALL_IDS,
    NOTHING,
    block_gradient,
    block_size,
    cap_negatives,
    fold_block,
    is_negative,
    load_students,
    log_one_minus_exp,
    may_be_negative,
    online,
    penalty,
    reward_term,
    student_columns,
    subtract_shares,
)

ENTRIES = (
    256  # reward entries at a time; an item prefix has about as many continuations (a codebook)
)


def reduce_rows(
    z_NV: Tensor,
    students_JNC: Tensor,
    label_ze_N: Tensor | None,
    position_V: Tensor | None,
    rows: slice,
    task: Task,
    want_gradient: bool,
) -> Tensor:
    """As row_math.reduce_rows. position_V: place of each token among the students' columns, or -1;
    None where these are all tokens."""
    objective, labels_N = task.objective, task.labels_N[rows]
    num_rows, vocab_size = z_NV.shape
    num_students = len(students_JNC)
    if (
        num_students == 0
    ):  # plain SFT: no term looks at the students, the kernel's loads of them come from cache
        students_JNC = z_NV[None]
    if label_ze_N is None:
        label_ze_N = students_JNC[:, torch.arange(num_rows, device=z_NV.device), labels_N].mean(0)
    sums_N5 = z_NV.new_empty((num_rows, 5))
    offsets_N1 = tokens_E = values_E = shares_E = z_NV  # not read without rewards
    if task.rewards is not None:
        keys_E, values_E = task.rewards
        starts_N1 = torch.arange(rows.start, rows.stop + 1, device=keys_E.device) * vocab_size
        offsets_N1, tokens_E = torch.searchsorted(keys_E, starts_N1), keys_E % vocab_size
        values_E, shares_E = values_E.to(z_NV.dtype), torch.empty_like(values_E, dtype=z_NV.dtype)
    allowed_NV = z_NV
    if objective.limits_negatives:
        allowed_NV = continuation_mask(rows.start, num_rows, vocab_size, task).view(torch.uint8)
    logit_rule = objective.threshold == "logit"
    pad = triton.next_power_of_2(len(students_JNC))
    _row_kernel[(num_rows,)](
        z_NV,
        students_JNC,
        z_NV if position_V is None else position_V,
        allowed_NV,
        labels_N,
        label_ze_N,
        offsets_N1,
        tokens_E,
        values_E,
        shares_E,
        sums_N5,
        vocab_size,
        students_JNC.stride(1),
        students_JNC.stride(0),
        objective.beta,
        objective.alpha if logit_rule else math.log(objective.alpha),
        objective.reward_weight,
        objective.distillation_weight / len(students_JNC),
        1 / objective.reward_temperature,
        objective.max_negatives,
        J=len(students_JNC),
        J_PAD=pad,
        NEGATIVES=num_students > 0 and objective.needs_negatives,
        DISTIL=num_students > 0 and objective.distillation_weight > 0,
        REWARD=objective.reward_weight > 0,
        CONTINUATIONS=objective.reward_tokens == "continuations",
        CANDIDATES=position_V is not None,
        LIMITED=objective.limits_negatives,
        LOGIT=logit_rule,
        GRADIENT=want_gradient,
        BLOCK=block_size(z_NV, vocab_size, pad),
        ENTRIES=ENTRIES,
        num_warps=8,
    )
    return sums_N5.sum(0)


@triton.jit
def _row_kernel(
    z_ptr,
    students_ptr,
    position_ptr,
    allowed_ptr,
    labels_ptr,
    label_ze_ptr,
    offsets_ptr,
    tokens_ptr,
    values_ptr,
    shares_ptr,
    sums_ptr,
    vocab_size,
    student_stride,
    layer_stride,
    beta,
    threshold,
    mu,
    share,
    inverse_temperature,
    max_negatives,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
    REWARD: tl.constexpr,
    CONTINUATIONS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    LOGIT: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * vocab_size
    students_ptr += row * student_stride
    allowed_ptr += row * vocab_size
    label = tl.load(labels_ptr + row).to(tl.int32)
    z_label = tl.load(z_ptr + label)
    layers = tl.arange(0, J_PAD).to(tl.int64)
    kappa = threshold * z_label
    if not LOGIT:
        kappa = tl.load(label_ze_ptr + row) + threshold

    zero, nothing = tl.full((), 0.0, tl.float32), tl.full((), NOTHING, tl.float32)
    largest, total, largest_t, total_t, moment, largest_n, total_n = (
        nothing,
        zero,
        nothing,
        zero,
        zero,
        nothing,
        zero,
    )
    largest_j, total_j = tl.full((J_PAD,), NOTHING, tl.float32), tl.full((J_PAD,), 0.0, tl.float32)
    count = tl.full((), 0, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < vocab_size
        z = tl.load(z_ptr + tokens, mask=inside, other=NOTHING)
        index, known = student_columns(position_ptr, tokens, inside, 0, CANDIDATES)
        students, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
        allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
        (
            largest,
            total,
            largest_t,
            total_t,
            moment,
            largest_j,
            total_j,
            count,
            largest_n,
            total_n,
        ) = fold_block(
            z,
            students,
            ze,
            known,
            allowed,
            tokens,
            label,
            kappa,
            largest,
            total,
            largest_t,
            total_t,
            moment,
            largest_j,
            total_j,
            count,
            largest_n,
            total_n,
            NEGATIVES,
            DISTIL,
            CANDIDATES,
        )
    lse = largest + tl.log(total)
    lse_t = lse
    if CANDIDATES:
        lse_t = largest_t + tl.log(total_t)
        total = total_t
    lse_j = largest_j + tl.log(total_j)
    distillation = zero
    if DISTIL:
        distillation = moment / total - lse_t + tl.sum(tl.where(layers < J, lse_j, 0.0), 0) / J

    bound, last_id, lift, reward, mass, lse_n = (
        kappa,
        tl.full((), ALL_IDS, tl.int32),
        zero,
        zero,
        zero,
        nothing,
    )
    if NEGATIVES:
        if (max_negatives > 0) & (count > max_negatives):
            bound, last_id, total_n = cap_negatives(
                students_ptr,
                position_ptr,
                allowed_ptr,
                vocab_size,
                layer_stride,
                label,
                kappa,
                max_negatives,
                largest_n,
                J,
                J_PAD,
                CANDIDATES,
                LIMITED,
                BLOCK,
            )
            count = tl.full((), 0, tl.int32) + max_negatives
        lse_n = largest_n + tl.log(total_n)
        largest, total = zero, zero + 1.0  # the 1 in log(1 + sum)
        if count > 0:
            for start in range(0, vocab_size, BLOCK):
                tokens = start + tl.arange(0, BLOCK)
                index, known = student_columns(
                    position_ptr, tokens, tokens < vocab_size, 0, CANDIDATES
                )
                _, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
                allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
                negative = is_negative(ze, tokens, allowed, label, bound, last_id)
                z = tl.load(z_ptr + tokens, mask=negative, other=NOTHING)
                size, _ = penalty(z, ze, negative, lse_n, beta)
                largest, total, _, _ = online(
                    largest, total, z - lse + size + log_one_minus_exp(size)
                )
        lift = largest + tl.log(total)
    begin, end = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    if REWARD:
        begin, end = tl.load(offsets_ptr + row), tl.load(offsets_ptr + row + 1)
        reward, mass = reward_term(
            z_ptr,
            students_ptr,
            position_ptr,
            allowed_ptr,
            tokens_ptr,
            values_ptr,
            shares_ptr,
            begin,
            end,
            layer_stride,
            label,
            bound,
            last_id,
            lse,
            inverse_temperature,
            J,
            J_PAD,
            CANDIDATES,
            LIMITED,
            CONTINUATIONS,
            ENTRIES,
        )
    tl.store(sums_ptr + row * 5, lse + lift - z_label)
    tl.store(sums_ptr + row * 5 + 1, distillation)
    tl.store(sums_ptr + row * 5 + 2, reward)
    tl.store(sums_ptr + row * 5 + 3, count.to(tl.float32))
    tl.store(sums_ptr + row * 5 + 4, tl.where(count == 0, 1.0, 0.0))
    if GRADIENT:
        for start in range(0, vocab_size, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            inside = tokens < vocab_size
            z = tl.load(z_ptr + tokens, mask=inside, other=NOTHING)
            index, known = student_columns(position_ptr, tokens, inside, 0, CANDIDATES)
            students, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
            allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
            grad, student_grads = block_gradient(
                z,
                students,
                ze,
                known,
                allowed,
                tokens,
                label,
                bound,
                last_id,
                lse,
                lse_n,
                lift,
                mass,
                lse_t,
                lse_j,
                beta,
                mu,
                share,
                NEGATIVES,
                DISTIL,
            )
            # Where a block is narrower than the program, several threads load what one stores.
            tl.debug_barrier()
            tl.store(z_ptr + tokens, grad, mask=inside)
            if DISTIL:
                tl.store(
                    students_ptr + layers[:, None] * layer_stride + index[None, :],
                    student_grads,
                    mask=(layers[:, None] < J) & known[None, :],
                )
        if REWARD:
            subtract_shares(z_ptr, tokens_ptr, shares_ptr, begin, end, mu, ENTRIES)
