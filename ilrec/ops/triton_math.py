"""What a Triton program does with a row of logits: the mathematics of ilrec/ops/row_math.py, a
block of tokens at a time.

Device functions; the kernels that are made of them are in triton_rows.py (whole rows) and
triton_tiles.py (tiles of the vocabulary).

Names: z the last layer's logits, ze the ensemble's, a sum of e^x is kept as (largest, total). A
token v is a hard negative if it is allowed, not the label, and ze > bound or (ze == bound and v <=
last_id); without a cap these are kappa and ALL_IDS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(float("-inf"))
ALL_IDS = tl.constexpr(2**31 - 1)
# Tokens at a time, over all students. CUDA: by arithmetic, not measured: with 8 warps a value takes
# 16 registers a thread. The interpreter takes about 35 us an operation whatever its width.
BLOCK = {"cuda": 4096, "cpu": 32768}


def runs_on(device: torch.device) -> bool:
    """On CUDA; on the CPU in Triton's interpreter, for tests."""
    return device.type == "cuda" or (device.type == "cpu" and triton.knobs.runtime.interpret)


def block_size(logits: Tensor, num_tokens: int, num_students: int) -> int:
    """Tokens at a time, a power of two."""
    return min(
        triton.next_power_of_2(num_tokens), max(1, BLOCK[logits.device.type] // num_students)
    )


@triton.jit
def online(largest, total, values):
    """Adds values [BLOCK] to a log-sum-exp. Also returns e^(values - largest), and what older sums
    must be scaled by."""
    new = tl.maximum(largest, tl.max(values, 0))
    safe = tl.where(new == NOTHING, 0.0, new)  # -inf - -inf would be NaN
    scale, exp = tl.exp(largest - safe), tl.exp(values - safe)
    return new, total * scale + tl.sum(exp, 0), exp, scale


@triton.jit
def online_each(largest, total, values):
    """The same for each student: values [J, BLOCK]."""
    new = tl.maximum(largest, tl.max(values, 1))
    safe = tl.where(new == NOTHING, 0.0, new)
    return new, total * tl.exp(largest - safe) + tl.sum(tl.exp(values - safe[:, None]), 1)


@triton.jit
def load_students(row_ptr, index, mask, layer_stride, J: tl.constexpr, J_PAD: tl.constexpr):
    """Students' logits [J_PAD, BLOCK], -inf where there are none, and their mean: the
    ensemble's."""
    layer = tl.arange(0, J_PAD).to(tl.int64)[:, None]
    logits = tl.load(
        row_ptr + layer * layer_stride + index[None, :],
        mask=(layer < J) & mask[None, :],
        other=NOTHING,
    )
    return logits, tl.sum(tl.where(layer < J, logits, 0.0), 0) / J


@triton.jit
def student_columns(position_ptr, tokens, mask, first, CANDIDATES: tl.constexpr):
    """Where the students' logits of these tokens lie, and whether they have any."""
    if CANDIDATES:
        index = tl.load(position_ptr + tokens, mask=mask, other=-1)
        known = index >= 0
        return tl.where(known, index - first, 0), known
    return tokens - first, mask


@triton.jit
def may_be_negative(allowed_ptr, tokens, known, LIMITED: tl.constexpr):
    """Of the known tokens: all, or those that the row's bytes [V] at allowed_ptr allow."""
    if LIMITED:
        return known & (tl.load(allowed_ptr + tokens, mask=known, other=0) != 0)
    return known


@triton.jit
def is_negative(ze, tokens, allowed, label, bound, last_id):
    return allowed & (tokens != label) & ((ze > bound) | ((ze == bound) & (tokens <= last_id)))


@triton.jit
def penalty(z, ze, negative, lse_negatives, beta):
    """beta w |z| on the negatives, and its slope in z. A logit that overflowed to -inf stays
    there."""
    weight = tl.where(negative & (z > NOTHING), tl.exp(ze - lse_negatives), 0.0) * beta
    sign = tl.where(z > 0, 1.0, 0.0) - tl.where(z < 0, 1.0, 0.0)
    return tl.where(weight > 0, weight * tl.abs(z), 0.0), weight * sign


@triton.jit
def log_one_minus_exp(x):
    """log(1 - e^-x), x >= 0. The series (to x^8, relative error 1e-8 at 1/2) is for small x, where
    1 - e^-x cancels."""
    series = 1 - x / 2 * (
        1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7 * (1 - x / 8)))))
    )
    return tl.log(tl.where(x < 0.5, x * series, 1 - tl.exp(-x)))


@triton.jit
def block_gradient(
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
    lse_negatives,
    lift,
    mass,
    lse_teacher,
    lse_students,
    beta,
    mu,
    share,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
):
    """d(preference + mu reward)/dz but for -mu q, and lambda dKL/d(students)."""
    log_p = z - lse
    grad = tl.exp(log_p)
    reward_grad = mu * mass * grad
    if NEGATIVES:
        negative = is_negative(ze, tokens, allowed, label, bound, last_id)
        size, slope = penalty(z, ze, negative, lse_negatives, beta)
        grad = tl.exp(log_p + size - lift) * (1 + slope)
    grad += reward_grad
    grad -= tl.where(tokens == label, 1.0, 0.0)
    student_grads = students
    if DISTIL:
        teacher = tl.where(known, tl.exp(z - lse_teacher), 0.0)
        student_grads = share * (tl.exp(students - lse_students[:, None]) - teacher[None, :])
    return grad, student_grads


@triton.jit
def sort_key(logits):
    """An int64 that sorts as the float32 does; -0.0 and 0.0 are one."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def count_from(
    order,
    students_ptr,
    position_ptr,
    allowed_ptr,
    vocab_size,
    layer_stride,
    label,
    kappa,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens above kappa have an ensemble logit of this order or more."""
    count = tl.full((), 0, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        index, known = student_columns(position_ptr, tokens, tokens < vocab_size, 0, CANDIDATES)
        _, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
        allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
        negative = is_negative(ze, tokens, allowed, label, kappa, ALL_IDS)
        count += tl.sum((negative & (sort_key(ze) >= order)).to(tl.int32), 0)
    return count


@triton.jit
def cap_negatives(
    students_ptr,
    position_ptr,
    allowed_ptr,
    vocab_size,
    layer_stride,
    label,
    kappa,
    max_negatives,
    largest,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """bound and last_id of the max_negatives largest (ties to the smaller id), and their sum of
    e^(ze - largest).

    Bisection over the 32 bits of a float: exact, no list, no sorting. Only rows with more negatives
        than the cap come here.
    """
    low, high = sort_key(kappa), sort_key(largest)
    while low < high:
        middle = (low + high + 1) >> 1
        count = count_from(
            middle,
            students_ptr,
            position_ptr,
            allowed_ptr,
            vocab_size,
            layer_stride,
            label,
            kappa,
            J,
            J_PAD,
            CANDIDATES,
            LIMITED,
            BLOCK,
        )
        low = tl.where(count >= max_negatives, middle, low)
        high = tl.where(count >= max_negatives, high, middle - 1)
    room = max_negatives - count_from(
        low + 1,
        students_ptr,
        position_ptr,
        allowed_ptr,
        vocab_size,
        layer_stride,
        label,
        kappa,
        J,
        J_PAD,
        CANDIDATES,
        LIMITED,
        BLOCK,
    )
    bits = low.to(tl.int32)
    bound = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    last_id, total = tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float32)
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        index, known = student_columns(position_ptr, tokens, tokens < vocab_size, 0, CANDIDATES)
        _, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
        allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
        tied = is_negative(ze, tokens, allowed, label, kappa, ALL_IDS) & (ze == bound)
        kept = tied & (tl.cumsum(tied.to(tl.int32), 0) <= room)
        room -= tl.sum(kept.to(tl.int32), 0)
        last_id = tl.maximum(last_id, tl.max(tl.where(kept, tokens, 0), 0))
        above = allowed & (tokens != label) & (ze > bound)
        total += tl.sum(tl.where(kept | above, tl.exp(ze - largest), 0.0), 0)
    return bound, last_id, total


@triton.jit
def reward_term(
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
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    CONTINUATIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Step 4 over a row's rewards: the loss and the sum of q (1, or 0 where no reward is known); q
    itself into shares.

    CONTINUATIONS: all entries share q, not the negatives and the label alone.
    """
    largest, total, loss = (
        tl.full((), NOTHING, tl.float32),
        tl.full((), 0.0, tl.float32),
        tl.full((), 0.0, tl.float32),
    )
    for start in range(begin, end, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        mask = entries < end
        tokens = tl.load(tokens_ptr + entries, mask=mask, other=0).to(tl.int32)
        value = tl.load(values_ptr + entries, mask=mask, other=0.0)
        wanted = mask & (value > 0)
        if not CONTINUATIONS:
            index, known = student_columns(position_ptr, tokens, mask, 0, CANDIDATES)
            _, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
            allowed = may_be_negative(allowed_ptr, tokens, known, LIMITED)
            wanted &= is_negative(ze, tokens, allowed, label, bound, last_id) | (tokens == label)
        log_value = tl.where(
            wanted, tl.log(tl.where(wanted, value, 1.0)) * inverse_temperature, NOTHING
        )
        z = tl.load(z_ptr + tokens, mask=wanted, other=0.0)
        largest, total, exp, scale = online(largest, total, log_value)
        loss = loss * scale + tl.sum(exp * (lse - z), 0)
        tl.store(shares_ptr + entries, log_value, mask=mask)
    mass = tl.where(total > 0, 1.0, 0.0)
    total = tl.where(total > 0, total, 1.0)
    tl.debug_barrier()  # one thread may read what another wrote
    for start in range(begin, end, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        log_value = tl.load(shares_ptr + entries, mask=entries < end, other=NOTHING)
        tl.store(
            shares_ptr + entries,
            tl.where(log_value > NOTHING, tl.exp(log_value - largest) / total, 0.0),
            mask=entries < end,
        )
    return loss / total, mass


@triton.jit
def subtract_shares(z_ptr, tokens_ptr, shares_ptr, begin, end, mu, ENTRIES: tl.constexpr):
    """The gradient of a row loses mu q where a reward is known."""
    tl.debug_barrier()  # the gradients were written by other threads of this program
    for start in range(begin, end, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        tokens = tl.load(tokens_ptr + entries, mask=entries < end, other=0).to(tl.int32)
        share = tl.load(shares_ptr + entries, mask=entries < end, other=0.0)
        grad = tl.load(z_ptr + tokens, mask=entries < end, other=0.0)
        tl.store(z_ptr + tokens, grad - mu * share, mask=entries < end)


@triton.jit
def fold_block(
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
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Adds a block of tokens to a row's statistics: lse of z, of the teacher (z over the
    candidates), of each student, of ze over the negatives; the moment sum P (z - ze) of the KL; the
    number of negatives."""
    largest, total, exp, scale = online(largest, total, z)
    if DISTIL:
        if CANDIDATES:
            largest_t, total_t, exp, scale = online(largest_t, total_t, tl.where(known, z, NOTHING))
        moment = moment * scale + tl.sum(tl.where(known & (exp > 0), exp * (z - ze), 0.0), 0)
        largest_j, total_j = online_each(largest_j, total_j, students)
    if NEGATIVES:
        negative = is_negative(ze, tokens, allowed, label, kappa, ALL_IDS)
        count += tl.sum(negative.to(tl.int32), 0)
        largest_n, total_n, _, _ = online(largest_n, total_n, tl.where(negative, ze, NOTHING))
    return largest, total, largest_t, total_t, moment, largest_j, total_j, count, largest_n, total_n
