"""The vocabulary operation in tiles of the vocabulary: memory of O(N), for when a slab of whole
rows does not fit. CUDA with Triton.

Pass 1 projects tile after tile and keeps running statistics of each row and a short list of its
hard negatives (the threshold needs only the label's logits, so it is known beforehand). Pass 2
projects each tile once more, turns it into its gradient and projects that back. 6 products where
row_slab needs 4, but each with all rows at once: better where row_slab's slabs would hold few rows.
Rows whose negatives overflow the list are few (a flat readout, a low alpha) and go to row_slab
whole: exact for any number.

float32 logits only. Called through `ilrec.ops.cross_layer_loss(..., backend="vocab_stream")`;
`ilrec.ops.reference` is the specification.

Shape letters: N supervised tokens, G row groups (last layer, then J students), V vocabulary, C
tokens of a tile, L length of a list, S negatives of all rows in one flat list, E reward entries, T
those of them that share the soft target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ilrec.ops import head_gemm, row_math, row_slab
from ilrec.ops.fused import States, Task
from ilrec.ops.head_gemm import Gradients, Head, Logits
from ilrec.ops.row_math import Negatives, Reward, Support
from ilrec.ops.triton_math import ALL_IDS
from ilrec.ops.triton_tiles import RowValues, Statistics, Tile, differentiate_tile, fold_tile

# Negatives listed per token, a power of two. Each has at least alpha * Pe(label) of the readout's
# probability, so that there are at most 1 / (alpha * Pe(label)): 128 covers every label that the
# readout gives 1.6 % or more under alpha = 0.5.
LIST_LENGTH = 128
# Columns of a tile come in multiples of this, so that the products keep their alignment.
TILE_COLUMNS = 128


class _TileEntries:
    """Places (row, token) of the whole vocabulary, found again tile by tile."""

    def __init__(self, rows_T: Tensor, tokens_T: Tensor, bounds: list[int]) -> None:
        order_T = tokens_T.argsort(stable=True)
        self.rows_T, self.tokens_T, self.order_T = rows_T[order_T], tokens_T[order_T], order_T
        self.starts = torch.searchsorted(
            self.tokens_T, torch.tensor(bounds, device=tokens_T.device)
        ).tolist()

    def mask(self, number: int, num_rows: int, first: int, last: int) -> Tensor:
        """bool [num_rows, last - first], True at the places of the `number`-th tile."""
        mask_NC = torch.zeros((num_rows, last - first), dtype=torch.bool, device=self.rows_T.device)
        rows_T, columns_T, _ = self.of(number, first)
        mask_NC[rows_T, columns_T] = True
        return mask_NC

    def of(self, number: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the `number`-th tile, which begins at token `first`: rows, columns, and which of the
        places these are."""
        inside = slice(self.starts[number], self.starts[number + 1])
        return self.rows_T[inside], self.tokens_T[inside] - first, self.order_T[inside]


class _Stream:
    """One call's states, head and tiles. `logits()` walks over the tiles, projecting each into the
    same memory."""

    def __init__(self, states: States, head: Head, task: Task) -> None:
        self.task, self.head = task, head
        self.states_GNH = states.stacked(slice(None))
        self.position_V, self.student_head, starts = None, None, None
        num_groups, num_rows, _ = self.states_GNH.shape
        columns = (
            task.slab_bytes
            // (num_groups * num_rows * self.states_GNH.itemsize)
            // TILE_COLUMNS
            * TILE_COLUMNS
        )
        self.columns = min(max(columns, TILE_COLUMNS), len(head))
        bounds = [*range(0, len(head), self.columns), len(head)]
        if task.candidate_ids_C is not None and states.num_students:
            self.position_V = row_slab.candidate_positions(task.candidate_ids_C, len(head))
            self.student_head = head.select(task.candidate_ids_C, self.position_V)
            starts = torch.searchsorted(
                task.candidate_ids_C, torch.tensor(bounds, device=head.weight_VH.device)
            ).tolist()
        self.bounds, self.student_bounds = bounds, starts or bounds
        self.allowed = None
        if task.objective.limits_negatives and task.rewards is not None:
            self.allowed = _TileEntries(
                task.rewards[0] // len(head), task.rewards[0] % len(head), bounds
            )
        self.room = self.states_GNH.new_empty(num_groups * num_rows * self.columns)

    def logits(self) -> Iterator[tuple[Tile, Head, Head | None, Logits]]:
        for index, (first, last) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            allowed_NC = None
            if self.allowed is not None:
                allowed_NC = self.allowed.mask(index, len(self.task.labels_N), first, last)
            tile = Tile(first, last, self.student_bounds[index], self.position_V, allowed_NC)
            head, student_head = self.head.narrow(first, last), None
            if self.student_head is not None:
                student_head = self.student_head.narrow(
                    tile.student_first, self.student_bounds[index + 1]
                )
            yield (
                tile,
                head,
                student_head,
                head_gemm.project(self.states_GNH, head, student_head, self.room),
            )

    def label_logits(self) -> tuple[Tensor, Tensor]:
        """Of the last layer and of the ensemble, [N]."""
        z_N = self.head.label_logits(self.states_GNH[0], self.task.labels_N)
        students_GNH = self.states_GNH[1:]
        return z_N, self.head.label_logits(students_GNH.mean(0), self.task.labels_N) if len(
            students_GNH
        ) else z_N


def sums_and_gradients(states: States, head: Head, task: Task, grads: Gradients) -> Tensor:
    """The five sums of ilrec.ops.STATS; adds to `grads`. A tile takes task.slab_bytes, TILE_COLUMNS
    tokens at least."""
    stream = _Stream(states, head, task)
    label_logits_N, label_ze_N = stream.label_logits()
    kappa_N = row_math.thresholds(label_logits_N, label_ze_N, task.objective)
    statistics = Statistics.empty(len(kappa_N), states.num_students, LIST_LENGTH, kappa_N.device)
    continuations = _continuations(task, len(head), label_logits_N)
    entries = _TileEntries(continuations.rows_T, continuations.tokens_T, stream.bounds)
    for number, (tile, _, _, logits) in enumerate(stream.logits()):
        fold_tile(logits, tile, kappa_N, statistics, task)
        rows_T, columns_T, places_T = entries.of(number, tile.first)
        continuations.logits_T[places_T] = logits.z_NV[rows_T, columns_T]
    sums_N5, row_values, reward = _finish(
        statistics, label_logits_N, kappa_N, states.num_students, len(head), task, continuations
    )
    overflow_N = statistics.count_N > LIST_LENGTH
    sums_5 = sums_N5.masked_fill(overflow_N[:, None], 0.0).sum(0)
    if any(grad is not None for grad in grads):
        _add_gradients(stream, row_values, reward, grads)
    del stream  # its tile is as large as a slab
    rows_R = overflow_N.nonzero()[:, 0]
    return sums_5 + _whole_rows(rows_R, states, head, task, grads) if len(rows_R) else sums_5


def _continuations(task: Task, vocab_size: int, label_logits_N: Tensor) -> Support:
    """The support of the reward's soft target where it is all continuations, its logits yet to be
    read; else empty."""
    keys_E, values_E = task.labels_N[:0], label_logits_N[:0]
    objective = task.objective
    if (
        task.rewards is not None
        and objective.reward_weight > 0
        and objective.reward_tokens == "continuations"
    ):
        keys_E, values_E = task.rewards
    return Support(
        keys_E // vocab_size, keys_E % vocab_size, values_E, label_logits_N.new_empty(len(keys_E))
    )


def _add_gradients(
    stream: _Stream, row_values: RowValues, reward: Reward, grads: Gradients
) -> None:
    """The second pass: each tile is made anew, becomes its gradient, and is projected back."""
    mu = stream.task.objective.reward_weight
    entries = _TileEntries(reward.rows_T, reward.tokens_T, stream.bounds)
    active_N = row_values.values_N7[:, -1]
    reward_grads_T = mu * reward.shares_T * active_N[reward.rows_T]
    for number, (tile, tile_head, student_head, logits) in enumerate(stream.logits()):
        differentiate_tile(logits, tile, row_values, stream.task)
        rows_T, columns_T, places_T = entries.of(number, tile.first)
        logits.z_NV[rows_T, columns_T] -= reward_grads_T[places_T]  # each place is there once
        tile_grads = grads
        if grads.head_VH is not None:
            tile_grads = grads._replace(head_VH=grads.head_VH[tile.first : tile.last])
        head_gemm.project_back(
            logits, stream.states_GNH, tile_head, student_head, slice(None), tile_grads
        )


def _finish(
    statistics: Statistics,
    label_logits_N: Tensor,
    kappa_N: Tensor,
    num_students: int,
    vocab_size: int,
    task: Task,
    continuations: Support,
) -> tuple[Tensor, RowValues, Reward]:
    """The losses of each row, and what its gradient needs. Those of rows that overflow their list
    are not used."""
    objective = task.objective
    lse_N, lse_teacher_N, lse_negatives_N, lse_students_NJ = statistics.log_sums()
    teacher_total_N = statistics.sums_NS[:, 3]
    if task.candidate_ids_C is None:
        lse_teacher_N, teacher_total_N = lse_N, statistics.sums_NS[:, 1]
    distillation_N = torch.zeros_like(lse_N)
    if objective.distillation_weight > 0 and num_students:
        moment_N = statistics.sums_NS[:, 4] / teacher_total_N
        distillation_N = moment_N - lse_teacher_N + lse_students_NJ[:, :num_students].mean(1)
    listed_NL = torch.arange(LIST_LENGTH, device=lse_N.device) < statistics.count_N[:, None]
    bound_N, last_id_N, kept_NL = _cap(statistics, listed_NL, kappa_N, objective.max_negatives)
    if objective.max_negatives > 0:
        lse_negatives_N = statistics.ze_NL.masked_fill(~kept_NL, -math.inf).logsumexp(1)
    rows_S, places_S = kept_NL.nonzero(as_tuple=True)
    weights_S = (statistics.ze_NL[rows_S, places_S] - lse_negatives_N[rows_S]).exp()
    negatives = Negatives(
        rows_S,
        statistics.tokens_NL[rows_S, places_S].long(),
        weights_S,
        statistics.z_NL[rows_S, places_S],
        kept_NL.sum(1),
    )
    preference_N, lift_N = row_math.preference(negatives, label_logits_N, lse_N, objective.beta)
    support = continuations
    if objective.reward_tokens == "negatives":
        support = _negatives_support(negatives, label_logits_N, vocab_size, task)
    reward = row_math.reward(support, lse_N, objective.reward_temperature)
    active_N = (statistics.count_N <= LIST_LENGTH).to(lse_N)
    values_N7 = torch.stack(
        [lse_N, lse_teacher_N, lse_negatives_N, bound_N, lift_N, reward.mass_N, active_N], dim=1
    )
    sums_N5 = torch.stack(
        [
            preference_N,
            distillation_N,
            reward.loss_N,
            negatives.counts_N.to(lse_N),
            (negatives.counts_N == 0).to(lse_N),
        ],
        dim=1,
    )
    return sums_N5, RowValues(values_N7, last_id_N, lse_students_NJ.contiguous()), reward


def _negatives_support(
    negatives: Negatives, label_logits_N: Tensor, vocab_size: int, task: Task
) -> Support:
    rows_T, tokens_T, rewards_T = row_math.reward_places(
        negatives, task.labels_N, 0, vocab_size, task
    )
    logits_T = torch.cat([negatives.logits_S, label_logits_N])[
        : len(rows_T)
    ]  # none where there are no rewards
    return Support(rows_T, tokens_T, rewards_T, logits_T)


def _cap(
    statistics: Statistics, listed_NL: Tensor, kappa_N: Tensor, max_negatives: int
) -> tuple[Tensor, Tensor, Tensor]:
    """bound and last_id (triton_math.is_negative) of the max_negatives largest, and which of the
    listed these are."""
    all_ids_N = torch.full_like(statistics.count_N, ALL_IDS.value)
    if max_negatives == 0 or max_negatives >= LIST_LENGTH:
        return kappa_N, all_ids_N, listed_NL
    # Lists ascend in token, and a stable sort keeps that order among equals: ties go to the smaller
    # id.
    order_NL = (
        statistics.ze_NL.masked_fill(~listed_NL, -math.inf)
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    last_N1 = order_NL[:, max_negatives - 1 : max_negatives]
    crowded_N = statistics.count_N > max_negatives
    bound_N = torch.where(crowded_N, statistics.ze_NL.gather(1, last_N1)[:, 0], kappa_N)
    last_id_N = torch.where(crowded_N, statistics.tokens_NL.gather(1, last_N1)[:, 0], all_ids_N)
    first_NL = torch.zeros_like(listed_NL).scatter_(1, order_NL[:, :max_negatives], True)
    return bound_N, last_id_N, listed_NL & first_NL


def _whole_rows(rows_R: Tensor, states: States, head: Head, task: Task, grads: Gradients) -> Tensor:
    """Some rows by row_slab: the sums, and gradients added where they belong."""
    rewards = task.rewards
    if rewards is not None:
        keys_E, values_E = rewards
        place_N = torch.full_like(task.labels_N, -1).index_copy_(
            0, rows_R, torch.arange(len(rows_R), device=rows_R.device)
        )
        place_E = place_N[keys_E // len(head)]
        inside_E = place_E >= 0
        rewards = (place_E * len(head) + keys_E % len(head))[inside_E], values_E[inside_E]
    some = task._replace(labels_N=task.labels_N[rows_R], rewards=rewards)
    some_grads = grads._replace(
        hidden_NH=None if grads.hidden_NH is None else torch.zeros_like(grads.hidden_NH[rows_R]),
        students_JNH=None
        if grads.students_JNH is None
        else torch.zeros_like(grads.students_JNH[:, rows_R]),
    )
    sums_5 = row_slab.sums_and_gradients(states.select(rows_R), head, some, some_grads)
    if grads.hidden_NH is not None and some_grads.hidden_NH is not None:
        grads.hidden_NH[rows_R] = some_grads.hidden_NH
    if grads.students_JNH is not None and some_grads.students_JNH is not None:
        grads.students_JNH[:, rows_R] = some_grads.students_JNH
    return sums_5
