"""The Triton kernel behind row_slab on CUDA: all that happens to whole rows of logits between the
two matrix products.

One program per row does all of it: statistics, hard negatives, penalised loss, KL, reward, and the
gradient in place. Nothing is summed across programs: no atomics, the same bits in every run. Logits
are float32.

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

from ilrec.ops.objective import TermSums
from ilrec.ops.row_inputs import RowInputs
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

# Reward entries at a time: the prefix of an item has about as many continuations, one for each code
# of a codebook.
ENTRIES = 256
NUM_TERMS = tl.constexpr(len(TermSums._fields))


def reduce_rows(
    z_NV: Tensor,
    students_JNC: Tensor,
    label_ze_N: Tensor | None,
    position_V: Tensor | None,
    rows: slice,
    inputs: RowInputs,
    want_gradient: bool,
) -> TermSums:
    """As row_math.reduce_rows. position_V: the place of each token among the students' columns, or
    -1; None where the students have columns for all tokens."""
    objective, labels_N = inputs.objective, inputs.labels_N[rows]
    num_rows, vocab_size = z_NV.shape
    num_students = len(students_JNC)
    # Plain SFT has no students. No term looks at what is given in their place; that it is z costs
    # nothing, because the kernel has just loaded it.
    if num_students == 0:
        students_JNC = z_NV[None]
    if label_ze_N is None:
        every_row_N = torch.arange(num_rows, device=z_NV.device)
        label_ze_N = students_JNC[:, every_row_N, labels_N].mean(0)
    allowed_NV = z_NV  # not read where all tokens are allowed
    if objective.limits_negatives:
        mask_NV = continuation_mask(rows.start, num_rows, vocab_size, inputs)
        allowed_NV = mask_NV.view(torch.uint8)
    sums_N5 = z_NV.new_empty((num_rows, len(TermSums._fields)))
    logit_rule = objective.threshold == "logit"
    pad = triton.next_power_of_2(len(students_JNC))
    _row_kernel[(num_rows,)](
        z_NV,
        students_JNC,
        z_NV if position_V is None else position_V,
        allowed_NV,
        labels_N,
        label_ze_N,
        *_row_entries(inputs, rows, z_NV),
        sums_N5,
        vocab_size,
        students_JNC.stride(1),
        students_JNC.stride(0),
        objective.beta,
        objective.alpha if logit_rule else math.log(objective.alpha),
        objective.reward_weight,
        objective.distillation_weight / len(students_JNC),
        1 / objective.weight_temperature,
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
    return TermSums(*sums_N5.sum(0))


def _row_entries(inputs: RowInputs, rows: slice, z_NV: Tensor) -> tuple[Tensor, ...]:
    """Where the reward entries of each row begin [N + 1]; the tokens and rewards of all entries;
    and room for their shares of the soft target. Without rewards the kernel reads none of these."""
    if inputs.rewards is None:
        return z_NV, z_NV, z_NV, z_NV
    keys_E, values_E = inputs.rewards
    vocab_size = z_NV.shape[1]
    starts_N1 = torch.arange(rows.start, rows.stop + 1, device=keys_E.device) * vocab_size
    offsets_N1 = torch.searchsorted(keys_E, starts_N1)
    shares_E = torch.empty_like(values_E, dtype=z_NV.dtype)
    return offsets_N1, keys_E % vocab_size, values_E.to(z_NV.dtype), shares_E


@triton.jit
def _row_kernel(
    # The logits [N, V] and [J, N, C], which become their gradients.
    z_ptr,
    students_ptr,
    # What is known of tokens and rows: [V], [N, V], [N], [N].
    position_ptr,
    allowed_ptr,
    labels_ptr,
    label_ze_ptr,
    # The reward entries: where those of each row begin [N + 1]; token, reward and room for q [E].
    offsets_ptr,
    tokens_ptr,
    values_ptr,
    shares_ptr,
    # The terms of each row [N, 5].
    sums_ptr,
    vocab_size,
    student_stride,
    layer_stride,
    # threshold: alpha, or log(alpha) for the rule `probability`. share: lambda / J.
    beta,
    threshold,
    mu,
    share,
    inverse_weight_temperature,
    inverse_reward_temperature,
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
    # Names: _t is the teacher's (z over the candidates), _j each student's, _n of the negatives.
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

    # Phase 1, one pass over the vocabulary: the log-sum-exps, the moment of the KL, and how many
    # hard negatives there are (fold_block).
    zero, nothing = tl.full((), 0.0, tl.float32), tl.full((), NOTHING, tl.float32)
    largest, total, largest_t, total_t = nothing, zero, nothing, zero
    moment, largest_n, total_n = zero, nothing, zero
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
            inverse_weight_temperature,
            NEGATIVES,
            DISTIL,
            CANDIDATES,
        )

    # Phase 2: the distillation, from these sums alone. Without candidates the teacher is P itself.
    lse = largest + tl.log(total)
    lse_t = lse
    if CANDIDATES:
        lse_t = largest_t + tl.log(total_t)
        total = total_t
    lse_j = largest_j + tl.log(total_j)
    distillation = zero
    if DISTIL:
        distillation = moment / total - lse_t + tl.sum(tl.where(layers < J, lse_j, 0.0), 0) / J

    # Phase 3: the hard negatives. Where there are more than the cap allows, bound and last_id are
    # moved so that only the largest count. Then a pass over the vocabulary sums up what their
    # penalties add to the log-sum-exp: lift = log(1 + sum), the identity of row_math.py.
    bound, last_id = kappa, tl.full((), ALL_IDS, tl.int32)
    lift, lse_n = zero, nothing
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
                inverse_weight_temperature,
                J,
                J_PAD,
                CANDIDATES,
                LIMITED,
                BLOCK,
            )
            count = tl.full((), 0, tl.int32) + max_negatives
        lse_n = largest_n * inverse_weight_temperature + tl.log(total_n)
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
                size, _ = penalty(z, ze, negative, lse_n, beta, inverse_weight_temperature)
                log_term = z - lse + size + log_one_minus_exp(size)
                largest, total, _, _ = online(largest, total, log_term)
        lift = largest + tl.log(total)

    # Phase 4: the reward's loss and soft target, over the row's entries.
    reward, mass = zero, zero
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
            inverse_reward_temperature,
            J,
            J_PAD,
            CANDIDATES,
            LIMITED,
            CONTINUATIONS,
            ENTRIES,
        )

    # Phase 5: the terms of this row, in the order of TermSums.
    sums_ptr += row * NUM_TERMS
    tl.store(sums_ptr, lse + lift - z_label)
    tl.store(sums_ptr + 1, distillation)
    tl.store(sums_ptr + 2, reward)
    tl.store(sums_ptr + 3, count.to(tl.float32))
    tl.store(sums_ptr + 4, tl.where(count == 0, 1.0, 0.0))

    # Phase 6, a last pass over the vocabulary: the logits become their gradients.
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
                inverse_weight_temperature,
                NEGATIVES,
                DISTIL,
            )
            # Where a block is narrower than the program, several threads load what one stores.
            tl.debug_barrier()
            tl.store(z_ptr + tokens, grad, mask=inside)
            if DISTIL:
                place = students_ptr + layers[:, None] * layer_stride + index[None, :]
                tl.store(place, student_grads, mask=(layers[:, None] < J) & known[None, :])
        if REWARD:
            subtract_shares(z_ptr, tokens_ptr, shares_ptr, begin, end, mu, ENTRIES)
