"""The Triton kernels behind vocab_stream: what happens to a tile of the vocabulary between the
matrix products.

`fold_tile` adds a tile of logits to the statistics of each row and lists its hard negatives. Once
the statistics are complete, `differentiate_tile` turns the tile, projected again, into its
gradient. One program per row, tiles in order: no atomics, the same bits in every run. Logits are
float32. The mathematics is that of triton_rows.py, and shared with it (triton_math.py).

Shape letters: N rows, J students, C tokens of the tile, D columns of the students' logits (C, or
the candidates among them), L length of a list of negatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ilrec.ops.head_gemm import Logits
from ilrec.ops.row_inputs import RowInputs
from ilrec.ops.triton_math import (
    ALL_IDS,
    NOTHING,
    block_gradient,
    block_size,
    fold_block,
    is_negative,
    load_students,
    may_be_negative,
    student_columns,
)

# Numbers of a row in Statistics.sums_NS, before those of each student.
NUM_SUMS = tl.constexpr(7)
NUM_ROW_VALUES = tl.constexpr(7)  # see RowValues


class Tile(NamedTuple):
    """Tokens [first, last) of the vocabulary; the students' columns begin at `student_first` of
    theirs.

    position_V: the place of each token among the students' columns, or -1. None: the students have
        columns for all tokens.
    allowed_NC: bool, the tokens that may be a row's negatives. None: all.
    """

    first: int
    last: int
    student_first: int
    position_V: Tensor | None
    allowed_NC: Tensor | None


class Statistics(NamedTuple):
    """What pass 1 knows of each row.

    sums_NS: for z, (largest, total); for z over the candidates, (largest, total); the KL's moment;
        for ze over the negatives, (largest, total); the students' `largest`; the students' `total`.
    count_N: how many negatives there are.
    tokens_NL, z_NL, ze_NL: the first L of them.
    """

    sums_NS: Tensor
    count_N: Tensor
    tokens_NL: Tensor
    z_NL: Tensor
    ze_NL: Tensor

    @classmethod
    def empty(
        cls, num_rows: int, num_students: int, length: int, device: torch.device
    ) -> Statistics:
        pad = triton.next_power_of_2(max(1, num_students))
        sums_NS = torch.zeros((num_rows, NUM_SUMS.value + 2 * pad), device=device)
        # Every `largest` begins at -inf, every other sum at 0.
        sums_NS[:, [0, 2, 5]] = -math.inf
        sums_NS[:, NUM_SUMS.value : NUM_SUMS.value + pad] = -math.inf
        return cls(
            sums_NS,
            torch.zeros(num_rows, dtype=torch.int32, device=device),
            torch.zeros((num_rows, length), dtype=torch.int32, device=device),
            torch.full((num_rows, length), -math.inf, device=device),
            torch.full((num_rows, length), -math.inf, device=device),
        )

    def log_sums(self, weight_temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The log-sum-exps of z, of z over the candidates, of ze / weight_temperature over the
        negatives (each [N]), and of each student [N, J padded]."""
        largest_NJ, total_NJ = self.sums_NS[:, NUM_SUMS.value :].chunk(2, dim=1)
        sums = self.sums_NS
        return (
            sums[:, 0] + sums[:, 1].log(),
            sums[:, 2] + sums[:, 3].log(),
            sums[:, 5] / weight_temperature + sums[:, 6].log(),
            largest_NJ + total_NJ.log(),
        )


class RowValues(NamedTuple):
    """All that the gradient of a row depends on, except the reward's soft target.

    values_N7: the log-sum-exps of z, of the teacher and of ze over the negatives; bound; lift; the
        reward's mass; 1, or 0 for a row that gets no gradient here.
    """

    values_N7: Tensor
    last_id_N: Tensor
    lse_students_NJ: Tensor


def fold_tile(
    logits: Logits, tile: Tile, kappa_N: Tensor, statistics: Statistics, inputs: RowInputs
) -> None:
    """Adds a tile of logits to `statistics`."""
    students_JND, pointers, flags = _operands(logits, tile, inputs)
    _fold_kernel[(len(kappa_N),)](
        *pointers,
        kappa_N,
        *statistics,
        tile.first,
        tile.last,
        tile.student_first,
        students_JND.stride(1),
        students_JND.stride(0),
        1 / inputs.objective.weight_temperature,
        LENGTH=statistics.tokens_NL.shape[1],
        **flags,
    )


def differentiate_tile(
    logits: Logits, tile: Tile, row_values: RowValues, inputs: RowInputs
) -> None:
    """A tile of logits becomes its gradient in place, without the part -mu q."""
    students_JND, pointers, flags = _operands(logits, tile, inputs)
    objective = inputs.objective
    _differentiate_kernel[(len(row_values.last_id_N),)](
        *pointers,
        *row_values,
        tile.first,
        tile.last,
        tile.student_first,
        students_JND.stride(1),
        students_JND.stride(0),
        objective.beta,
        objective.reward_weight,
        objective.distillation_weight / len(students_JND),
        1 / objective.weight_temperature,
        **flags,
    )


def _operands(
    logits: Logits, tile: Tile, inputs: RowInputs
) -> tuple[Tensor, list[Tensor], dict[str, int | bool]]:
    """What both kernels take: the students' logits, the first five pointers, and the flags that are
    known when they are compiled."""
    objective, students_JND = inputs.objective, logits.students_JNC
    has_students = len(students_JND) > 0
    # Plain SFT has no students. No term looks at what is given in their place; that it is z costs
    # nothing, because the kernel has just loaded it.
    if not has_students:
        students_JND = logits.z_NV[None]
    unread = logits.z_NV
    position_V = unread if tile.position_V is None else tile.position_V
    allowed_NC = unread if tile.allowed_NC is None else tile.allowed_NC.view(torch.uint8)
    pad = triton.next_power_of_2(len(students_JND))
    flags = {
        "J": len(students_JND),
        "J_PAD": pad,
        "NEGATIVES": has_students and objective.needs_negatives,
        "DISTIL": has_students and objective.distillation_weight > 0,
        "CANDIDATES": tile.position_V is not None,
        "LIMITED": tile.allowed_NC is not None,
        "BLOCK": block_size(logits.z_NV, logits.z_NV.shape[1], pad),
        "num_warps": 8,
    }
    return students_JND, [logits.z_NV, students_JND, position_V, allowed_NC, inputs.labels_N], flags


@triton.jit
def _fold_kernel(
    # The logits of the tile, [N, C] and [J, N, D].
    z_ptr,
    students_ptr,
    # What is known of tokens and rows: [V], [N, C], [N], [N].
    position_ptr,
    allowed_ptr,
    labels_ptr,
    kappa_ptr,
    # The fields of Statistics, which are updated.
    sums_ptr,
    count_ptr,
    tokens_ptr,
    list_z_ptr,
    list_ze_ptr,
    # The fields of Tile, and the strides of the students' logits.
    first,
    last,
    student_first,
    student_stride,
    layer_stride,
    inverse_weight_temperature,
    LENGTH: tl.constexpr,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * (last - first)
    students_ptr += row * student_stride
    allowed_ptr += row * (last - first)
    sums_ptr += row * (NUM_SUMS + 2 * J_PAD)
    label, kappa = tl.load(labels_ptr + row).to(tl.int32), tl.load(kappa_ptr + row)

    # Phase 1: the statistics as the tiles before have left them (Statistics.sums_NS).
    layers = tl.arange(0, J_PAD)
    largest, total = tl.load(sums_ptr), tl.load(sums_ptr + 1)
    largest_t, total_t = tl.load(sums_ptr + 2), tl.load(sums_ptr + 3)
    moment = tl.load(sums_ptr + 4)
    largest_n, total_n = tl.load(sums_ptr + 5), tl.load(sums_ptr + 6)
    largest_j = tl.load(sums_ptr + NUM_SUMS + layers)
    total_j = tl.load(sums_ptr + NUM_SUMS + J_PAD + layers)
    count = tl.load(count_ptr + row)

    # Phase 2: this tile, a block at a time. Its negatives are listed while there is room, and all
    # of its tokens are added to the statistics.
    for start in range(first, last, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < last
        z = tl.load(z_ptr + tokens - first, mask=inside, other=NOTHING)
        index, known = student_columns(position_ptr, tokens, inside, student_first, CANDIDATES)
        students, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
        allowed = may_be_negative(allowed_ptr - first, tokens, known, LIMITED)
        if NEGATIVES:
            negative = is_negative(ze, tokens, allowed, label, kappa, ALL_IDS)
            place = row * LENGTH + count + tl.cumsum(negative.to(tl.int32), 0) - 1
            kept = negative & (place < (row + 1) * LENGTH)
            tl.store(tokens_ptr + place, tokens, mask=kept)
            tl.store(list_z_ptr + place, z, mask=kept)
            tl.store(list_ze_ptr + place, ze, mask=kept)
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

    # Phase 3: the statistics for the tiles to come.
    tl.store(sums_ptr, largest)
    tl.store(sums_ptr + 1, total)
    tl.store(sums_ptr + 2, largest_t)
    tl.store(sums_ptr + 3, total_t)
    tl.store(sums_ptr + 4, moment)
    tl.store(sums_ptr + 5, largest_n)
    tl.store(sums_ptr + 6, total_n)
    tl.store(sums_ptr + NUM_SUMS + layers, largest_j)
    tl.store(sums_ptr + NUM_SUMS + J_PAD + layers, total_j)
    tl.store(count_ptr + row, count)


@triton.jit
def _differentiate_kernel(
    # The logits of the tile, [N, C] and [J, N, D], which become their gradients.
    z_ptr,
    students_ptr,
    # What is known of tokens and rows: [V], [N, C], [N].
    position_ptr,
    allowed_ptr,
    labels_ptr,
    # The fields of RowValues.
    values_ptr,
    last_id_ptr,
    lse_students_ptr,
    # The fields of Tile, and the strides of the students' logits.
    first,
    last,
    student_first,
    student_stride,
    layer_stride,
    beta,
    mu,
    share,
    inverse_weight_temperature,
    J: tl.constexpr,
    J_PAD: tl.constexpr,
    NEGATIVES: tl.constexpr,
    DISTIL: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * (last - first)
    students_ptr += row * student_stride
    allowed_ptr += row * (last - first)
    values_ptr += row * NUM_ROW_VALUES

    # Phase 1: what is known of the row (RowValues).
    label, last_id = tl.load(labels_ptr + row).to(tl.int32), tl.load(last_id_ptr + row)
    lse, lse_t, lse_n = tl.load(values_ptr), tl.load(values_ptr + 1), tl.load(values_ptr + 2)
    bound, lift, mass = tl.load(values_ptr + 3), tl.load(values_ptr + 4), tl.load(values_ptr + 5)
    active = tl.load(values_ptr + 6) > 0
    layers = tl.arange(0, J_PAD).to(tl.int64)
    lse_j = tl.load(lse_students_ptr + row * J_PAD + layers)

    # Phase 2: each block becomes its gradient.
    for start in range(first, last, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < last
        z = tl.load(z_ptr + tokens - first, mask=inside, other=NOTHING)
        index, known = student_columns(position_ptr, tokens, inside, student_first, CANDIDATES)
        students, ze = load_students(students_ptr, index, known, layer_stride, J, J_PAD)
        allowed = may_be_negative(allowed_ptr - first, tokens, known, LIMITED)
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
        tl.store(z_ptr + tokens - first, tl.where(active, grad, 0.0), mask=inside)
        if DISTIL:
            place = students_ptr + layers[:, None] * layer_stride + index[None, :]
            written = (layers[:, None] < J) & known[None, :]
            tl.store(place, tl.where(active, student_grads, 0.0), mask=written)
