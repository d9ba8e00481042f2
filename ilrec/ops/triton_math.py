"""What a Triton program does with a row of logits: the mathematics of ilrec/ops/row_math.py, a
block of tokens at a time.

Device functions. The kernels that are made of them are in triton_rows.py (whole rows) and
triton_tiles.py (tiles of the vocabulary).

Names: z are the last layer's logits, ze the ensemble's. A sum of e^x is kept as (largest, total),
which means e^largest * total. A token v is a hard negative if it is allowed, not the label, and
ze > bound or (ze == bound and v <= last_id). Without a cap, bound is kappa and last_id is ALL_IDS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(float("-inf"))
ALL_IDS = tl.constexpr(2**31 - 1)
# Tokens at a time, over all students. CUDA: by arithmetic, not measured; with 8 warps each value of
# a block takes 16 registers of a thread. The interpreter ("cpu") takes about 35 us for an operation
# of any width.
BLOCK = {"cuda": 4096, "cpu": 32768}


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA, and for tests on the CPU in Triton's interpreter."""
    return device.type == "cuda" or (device.type == "cpu" and triton.knobs.runtime.interpret)


def block_size(logits: Tensor, num_tokens: int, num_students: int) -> int:
    """Tokens at a time, a power of two."""
    most = max(1, BLOCK[logits.device.type] // num_students)
    return min(triton.next_power_of_2(num_tokens), most)


@triton.jit
def online(largest, total, values):
    """Adds values [BLOCK] to a log-sum-exp. Also returns e^(values - largest), and the factor by
    which earlier sums of such terms must be multiplied."""
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
def online_weights(largest, total, ze, inverse_weight_temperature):
    """The same for the ze of negatives, of which `total` sums e^((ze - largest) / temperature).

    `largest` is not divided by the temperature: cap_negatives searches up to it.
    """
    new = tl.maximum(largest, tl.max(ze, 0))
    safe = tl.where(new == NOTHING, 0.0, new)
    scale = tl.exp((largest - safe) * inverse_weight_temperature)
    exp = tl.exp((ze - safe) * inverse_weight_temperature)
    return new, total * scale + tl.sum(exp, 0)


@triton.jit
def load_students(row_ptr, index, mask, layer_stride, J: tl.constexpr, J_PAD: tl.constexpr):
    """The students' logits [J_PAD, BLOCK], -inf where there are none; and their mean [BLOCK], the
    ensemble's."""
    layer = tl.arange(0, J_PAD).to(tl.int64)[:, None]
    place = row_ptr + layer * layer_stride + index[None, :]
    logits = tl.load(place, mask=(layer < J) & mask[None, :], other=NOTHING)
    return logits, tl.sum(tl.where(layer < J, logits, 0.0), 0) / J


@triton.jit
def student_columns(position_ptr, tokens, mask, first, CANDIDATES: tl.constexpr):
    """Which columns of the students' logits these tokens have, and which tokens have one."""
    if CANDIDATES:
        index = tl.load(position_ptr + tokens, mask=mask, other=-1)
        known = index >= 0
        return tl.where(known, index - first, 0), known
    return tokens - first, mask


@triton.jit
def may_be_negative(allowed_ptr, tokens, known, LIMITED: tl.constexpr):
    """The known tokens: all of them, or those that the row's bytes [V] at allowed_ptr allow."""
    if LIMITED:
        return known & (tl.load(allowed_ptr + tokens, mask=known, other=0) != 0)
    return known


@triton.jit
def is_negative(ze, tokens, allowed, label, bound, last_id):
    return allowed & (tokens != label) & ((ze > bound) | ((ze == bound) & (tokens <= last_id)))


@triton.jit
def penalty(z, ze, negative, lse_negatives, beta, inverse_weight_temperature):
    """beta w |z| on the negatives, and its slope in z. Both are 0 for a logit that overflowed to
    -inf, which stays there."""
    share = tl.exp(ze * inverse_weight_temperature - lse_negatives)
    weight = tl.where(negative & (z > NOTHING), share, 0.0) * beta
    sign = tl.where(z > 0, 1.0, 0.0) - tl.where(z < 0, 1.0, 0.0)
    return tl.where(weight > 0, weight * tl.abs(z), 0.0), weight * sign


@triton.jit
def log_one_minus_exp(x):
    """log(1 - e^-x), x >= 0."""
    # Small x: 1 - e^-x loses its digits; the series of (1 - e^-x) / x to x^7 is off by 1e-8 at 1/2.
    last = 1 - x / 5 * (1 - x / 6 * (1 - x / 7 * (1 - x / 8)))
    series = 1 - x / 2 * (1 - x / 3 * (1 - x / 4 * last))
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
    inverse_weight_temperature,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
):
    """d(preference + mu reward)/dz without its part -mu q, and lambda dKL/d(students). share:
    lambda / J, the weight of one student."""
    # P' dz'/dz - [y] + mu mass P, as in row_math._logit_gradient_.
    log_p = z - lse
    grad = tl.exp(log_p)
    reward_grad = mu * mass * grad
    if NEGATIVES:
        negative = is_negative(ze, tokens, allowed, label, bound, last_id)
        size, slope = penalty(z, ze, negative, lse_negatives, beta, inverse_weight_temperature)
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
    """An int64 that sorts as the float32 does. -0.0 and 0.0 have the same."""
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
    """How many tokens above kappa have an ensemble logit whose sort_key is `order` or more."""
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
    inverse_weight_temperature,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """bound and last_id of the max_negatives largest (of equal ones those with the smaller id), and
    their sum of e^((ze - largest) / temperature).

    Only rows with more negatives than the cap come here. Bisection over the 32 bits of a float:
    exact, without a list and without sorting.
    """
    # 1. bound: the largest value that at least max_negatives tokens reach.
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
    bits = low.to(tl.int32)
    bound = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)

    # 2. room: how many of the tokens that equal the bound still fit below the cap.
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

    # 3. last_id: the last of those that fit, in order of their ids; and the sum over all kept.
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
        exp = tl.exp((ze - largest) * inverse_weight_temperature)
        total += tl.sum(tl.where(kept | above, exp, 0.0), 0)
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
    inverse_reward_temperature,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    CONTINUATIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Step 4 over a row's rewards: the loss, and the sum of q, which is 1, or 0 where no reward is
    known. q itself is written to shares.

    CONTINUATIONS: all entries share q, not the negatives and the label alone.
    """
    # 1. The loss, and the logarithms of the entries' rewards into shares.
    largest, total = tl.full((), NOTHING, tl.float32), tl.full((), 0.0, tl.float32)
    loss = tl.full((), 0.0, tl.float32)
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
        log_value = tl.log(tl.where(wanted, value, 1.0)) * inverse_reward_temperature
        log_value = tl.where(wanted, log_value, NOTHING)
        z = tl.load(z_ptr + tokens, mask=wanted, other=0.0)
        largest, total, exp, scale = online(largest, total, log_value)
        loss = loss * scale + tl.sum(exp * (lse - z), 0)
        tl.store(shares_ptr + entries, log_value, mask=mask)
    mass = tl.where(total > 0, 1.0, 0.0)
    total = tl.where(total > 0, total, 1.0)

    # 2. The logarithms become q. One thread may read what another wrote, hence the barrier.
    tl.debug_barrier()
    for start in range(begin, end, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        log_value = tl.load(shares_ptr + entries, mask=entries < end, other=NOTHING)
        q = tl.where(log_value > NOTHING, tl.exp(log_value - largest) / total, 0.0)
        tl.store(shares_ptr + entries, q, mask=entries < end)
    return loss / total, mass


@triton.jit
def subtract_shares(z_ptr, tokens_ptr, shares_ptr, begin, end, mu, ENTRIES: tl.constexpr):
    """Subtracts mu q from the gradient of a row, at its entries."""
    # The gradients were written by other threads of this program.
    tl.debug_barrier()
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
    inverse_weight_temperature,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Adds a block of tokens to a row's statistics.

    These are the log-sum-exps of z, of the teacher (_t: z over the candidates), of each student
    (_j) and of ze over the negatives (_n, online_weights); the moment sum P (z - ze) of the KL; and
    the number of negatives.
    """
    largest, total, exp, scale = online(largest, total, z)
    if DISTIL:
        if CANDIDATES:
            largest_t, total_t, exp, scale = online(largest_t, total_t, tl.where(known, z, NOTHING))
        moment = moment * scale + tl.sum(tl.where(known & (exp > 0), exp * (z - ze), 0.0), 0)
        largest_j, total_j = online_each(largest_j, total_j, students)
    if NEGATIVES:
        negative = is_negative(ze, tokens, allowed, label, kappa, ALL_IDS)
        count += tl.sum(negative.to(tl.int32), 0)
        listed = tl.where(negative, ze, NOTHING)
        largest_n, total_n = online_weights(largest_n, total_n, listed, inverse_weight_temperature)
    return largest, total, largest_t, total_t, moment, largest_j, total_j, count, largest_n, total_n
