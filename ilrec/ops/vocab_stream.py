"""The vocabulary operation in tiles of the vocabulary: memory of O(N), for when a slab of whole
rows does not fit. CUDA with Triton.

Pass 1 projects tile after tile and keeps running statistics of each row and a short list of its
hard negatives. The threshold needs only the label's logits, so it is known before. Pass 2 projects
each tile once more, turns it into its gradient and projects that back. These are 6 products where
row_slab needs 4, but each has all rows at once: faster where row_slab's slabs would hold few rows.
A row whose negatives overflow the list (a flat readout, a low alpha) goes to row_slab. There are
few such rows, and the result is exact for any number of negatives.

float32 logits only. Called through `ilrec.ops.cross_layer_loss(..., backend="vocab_stream")`;
`ilrec.ops.reference` is the specification.

Shape letters: N supervised tokens, G row groups (last layer, then J students), V vocabulary, C
tokens of a tile, L length of a list, S negatives of all rows in one flat list, E reward entries, T
those of them that share the soft target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ilrec.ops import head_gemm, row_math, row_slab
from ilrec.ops.fused import States
from ilrec.ops.head_gemm import Gradients, Head, Logits
from ilrec.ops.objective import TermSums
from ilrec.ops.row_inputs import RowInputs
from ilrec.ops.row_math import Negatives, Reward, Support
from ilrec.ops.triton_math import ALL_IDS
from ilrec.ops.triton_tiles import RowValues, Statistics, Tile, differentiate_tile, fold_tile

# Negatives listed per token, a power of two. The readout gives each at least the probability
# alpha * Pe(label), so there are at most 1 / (alpha * Pe(label)) of them. With alpha = 0.5, 128 are
# enough for every label to which the readout gives 1.6 % or more.
LIST_LENGTH = 128
# The columns of a tile are a multiple of this, so that the products keep their alignment.
TILE_COLUMNS = 128


class _TileEntries:
    """Places (row, token) of the whole vocabulary, to be found again tile by tile.

    bounds: the first token of each tile, and the end of the last.
    """

    def __init__(self, rows_T: Tensor, tokens_T: Tensor, bounds: list[int]) -> None:
        self.order_T = tokens_T.argsort(stable=True)
        self.rows_T, self.tokens_T = rows_T[self.order_T], tokens_T[self.order_T]
        edges = torch.tensor(bounds, device=tokens_T.device)
        self.starts = torch.searchsorted(self.tokens_T, edges).tolist()

    def mask(self, number: int, num_rows: int, first: int, last: int) -> Tensor:
        """bool [num_rows, last - first], True at the places of the `number`-th tile."""
        mask_NC = torch.zeros((num_rows, last - first), dtype=torch.bool, device=self.rows_T.device)
        rows_T, columns_T, _ = self.of(number, first)
        mask_NC[rows_T, columns_T] = True
        return mask_NC

    def of(self, number: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the places in the `number`-th tile, which begins at token `first`;
        and which of all places these are."""
        inside = slice(self.starts[number], self.starts[number + 1])
        return self.rows_T[inside], self.tokens_T[inside] - first, self.order_T[inside]


class _ProjectedTile(NamedTuple):
    """A tile, the parts of the heads that it covers, and its logits."""

    tile: Tile
    head: Head
    student_head: Head | None
    logits: Logits


class _Stream:
    """One call's states, head and tiles. `tiles()` projects tile after tile into the same
    memory."""

    def __init__(self, states: States, head: Head, inputs: RowInputs) -> None:
        self.inputs, self.head = inputs, head
        self.states_GNH = states.stacked(slice(None))
        num_groups, num_rows, _ = self.states_GNH.shape

        # As many columns as fit into the memory, rounded down to whole blocks.
        column_bytes = num_groups * num_rows * self.states_GNH.itemsize
        blocks = max(1, inputs.slab_bytes // column_bytes // TILE_COLUMNS)
        columns = min(blocks * TILE_COLUMNS, len(head))
        self.room = self.states_GNH.new_empty(num_groups * num_rows * columns)
        self.bounds = [*range(0, len(head), columns), len(head)]

        # The students' columns are the candidates, where these are given, and have bounds of their
        # own.
        self.position_V, self.student_head, self.student_bounds = None, None, self.bounds
        if inputs.candidate_ids_C is not None and states.num_students:
            self.position_V = row_slab.candidate_positions(inputs.candidate_ids_C, len(head))
            self.student_head = head.select(inputs.candidate_ids_C, self.position_V)
            edges = torch.tensor(self.bounds, device=head.weight_VH.device)
            self.student_bounds = torch.searchsorted(inputs.candidate_ids_C, edges).tolist()

        self.allowed = None
        if inputs.objective.limits_negatives and inputs.rewards is not None:
            keys_E, _ = inputs.rewards
            self.allowed = _TileEntries(keys_E // len(head), keys_E % len(head), self.bounds)

    def tiles(self) -> Iterator[_ProjectedTile]:
        for number in range(len(self.bounds) - 1):
            first, last = self.bounds[number : number + 2]
            student_first, student_last = self.student_bounds[number : number + 2]
            allowed_NC = None
            if self.allowed is not None:
                allowed_NC = self.allowed.mask(number, len(self.inputs.labels_N), first, last)
            head, student_head = self.head.narrow(first, last), None
            if self.student_head is not None:
                student_head = self.student_head.narrow(student_first, student_last)
            tile = Tile(first, last, student_first, self.position_V, allowed_NC)
            logits = head_gemm.project(self.states_GNH, head, student_head, self.room)
            yield _ProjectedTile(tile, head, student_head, logits)

    def label_logits(self) -> tuple[Tensor, Tensor]:
        """The labels' logits: of the last layer, and of the ensemble. Both [N]."""
        labels_N, students_GNH = self.inputs.labels_N, self.states_GNH[1:]
        z_N = self.head.label_logits(self.states_GNH[0], labels_N)
        if len(students_GNH) == 0:
            return z_N, z_N
        return z_N, self.head.label_logits(students_GNH.mean(0), labels_N)


def sums_and_gradients(states: States, head: Head, inputs: RowInputs, grads: Gradients) -> TermSums:
    """The sums over all rows; adds to `grads`. A tile takes inputs.slab_bytes, or TILE_COLUMNS
    tokens if that is more."""
    # Pass 1: the statistics and the list of negatives of each row. The logits of the reward's
    # support are read on the way, where it is known beforehand.
    stream = _Stream(states, head, inputs)
    label_logits_N, label_ze_N = stream.label_logits()
    kappa_N = row_math.thresholds(label_logits_N, label_ze_N, inputs.objective)
    statistics = Statistics.empty(len(kappa_N), states.num_students, LIST_LENGTH, kappa_N.device)
    continuations = _continuations(inputs, len(head), label_logits_N)
    entries = _TileEntries(continuations.rows_T, continuations.tokens_T, stream.bounds)
    for number, (tile, _, _, logits) in enumerate(stream.tiles()):
        fold_tile(logits, tile, kappa_N, statistics, inputs)
        rows_T, columns_T, places_T = entries.of(number, tile.first)
        continuations.logits_T[places_T] = logits.z_NV[rows_T, columns_T]

    # Between the passes: the losses, of the rows whose lists did not overflow.
    sums_N5, row_values, reward = _finish(
        statistics, label_logits_N, kappa_N, states.num_students, len(head), inputs, continuations
    )
    overflow_N = statistics.count_N > LIST_LENGTH
    sums_5 = sums_N5.masked_fill(overflow_N[:, None], 0.0).sum(0)

    # Pass 2: the gradients of these rows.
    if any(grad is not None for grad in grads):
        _add_gradients(stream, row_values, reward, grads)

    # The other rows, whole. The tile's memory is as large as a slab, and is freed before.
    del stream
    rows_R = overflow_N.nonzero()[:, 0]
    if len(rows_R):
        sums_5 = sums_5 + torch.stack(_whole_rows(rows_R, states, head, inputs, grads))
    return TermSums(*sums_5)


def _continuations(inputs: RowInputs, vocab_size: int, label_logits_N: Tensor) -> Support:
    """The support of the reward's soft target if it is all continuations: known before pass 1, but
    for its logits, which are filled in then. Otherwise empty."""
    objective = inputs.objective
    keys_E, values_E = inputs.labels_N[:0], label_logits_N[:0]
    shares_target = objective.reward_weight > 0 and objective.reward_tokens == "continuations"
    if inputs.rewards is not None and shares_target:
        keys_E, values_E = inputs.rewards
    logits_E = label_logits_N.new_empty(len(keys_E))
    return Support(keys_E // vocab_size, keys_E % vocab_size, values_E, logits_E)


def _add_gradients(
    stream: _Stream, row_values: RowValues, reward: Reward, grads: Gradients
) -> None:
    """The second pass: each tile is projected again, becomes its gradient, and is projected
    back."""
    mu = stream.inputs.objective.reward_weight
    entries = _TileEntries(reward.rows_T, reward.tokens_T, stream.bounds)
    active_N = row_values.values_N7[:, -1]
    reward_grads_T = mu * reward.shares_T * active_N[reward.rows_T]
    for number, (tile, tile_head, student_head, logits) in enumerate(stream.tiles()):
        differentiate_tile(logits, tile, row_values, stream.inputs)
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
    inputs: RowInputs,
    continuations: Support,
) -> tuple[Tensor, RowValues, Reward]:
    """The terms of each row, [N, 5] in the order of TermSums, and what its gradient needs. What it
    returns of rows that overflow their list is not used."""
    objective = inputs.objective
    temperature = objective.weight_temperature
    lse_N, lse_teacher_N, lse_negatives_N, lse_students_NJ = statistics.log_sums(temperature)

    # Step 3, from the sums alone.
    teacher_total_N = statistics.sums_NS[:, 3]
    if inputs.candidate_ids_C is None:
        lse_teacher_N, teacher_total_N = lse_N, statistics.sums_NS[:, 1]
    distillation_N = torch.zeros_like(lse_N)
    if objective.distillation_weight > 0 and num_students:
        moment_N = statistics.sums_NS[:, 4] / teacher_total_N
        distillation_N = moment_N - lse_teacher_N + lse_students_NJ[:, :num_students].mean(1)

    # Steps 1 and 2, from the lists. A cap leaves fewer negatives than the sums were made of.
    listed_NL = torch.arange(LIST_LENGTH, device=lse_N.device) < statistics.count_N[:, None]
    bound_N, last_id_N, kept_NL = _cap(statistics, listed_NL, kappa_N, objective.max_negatives)
    scaled_ze_NL = statistics.ze_NL / temperature
    if objective.max_negatives > 0:
        lse_negatives_N = scaled_ze_NL.masked_fill(~kept_NL, -math.inf).logsumexp(1)
    rows_S, places_S = kept_NL.nonzero(as_tuple=True)
    negatives = Negatives(
        rows_S=rows_S,
        tokens_S=statistics.tokens_NL[rows_S, places_S].long(),
        weights_S=(scaled_ze_NL[rows_S, places_S] - lse_negatives_N[rows_S]).exp(),
        logits_S=statistics.z_NL[rows_S, places_S],
        counts_N=kept_NL.sum(1),
    )
    preference_N, lift_N = row_math.preference(negatives, label_logits_N, lse_N, objective.beta)

    # Step 4.
    support = continuations
    if objective.reward_tokens == "negatives":
        support = _negatives_support(negatives, label_logits_N, vocab_size, inputs)
    reward = row_math.reward(support, lse_N, objective.reward_temperature)

    # Rows whose list overflowed get no gradient here; row_slab makes it.
    active_N = (statistics.count_N <= LIST_LENGTH).to(lse_N)
    values_N7 = torch.stack(
        [lse_N, lse_teacher_N, lse_negatives_N, bound_N, lift_N, reward.mass_N, active_N], dim=1
    )
    row_values = RowValues(values_N7, last_id_N, lse_students_NJ.contiguous())
    terms = TermSums(
        preference=preference_N,
        distillation=distillation_N,
        reward=reward.loss_N,
        num_negatives=negatives.counts_N.to(lse_N),
        num_rows_without_negative=(negatives.counts_N == 0).to(lse_N),
    )
    return torch.stack(terms, dim=1), row_values, reward


def _negatives_support(
    negatives: Negatives, label_logits_N: Tensor, vocab_size: int, inputs: RowInputs
) -> Support:
    rows_T, tokens_T, rewards_T = row_math.reward_places(
        negatives, inputs.labels_N, 0, vocab_size, inputs
    )
    # S, then the labels; or nothing where there are no rewards.
    logits_T = torch.cat([negatives.logits_S, label_logits_N])[: len(rows_T)]
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
    masked_NL = statistics.ze_NL.masked_fill(~listed_NL, -math.inf)
    order_NL = masked_NL.sort(dim=1, descending=True, stable=True).indices
    last_N1 = order_NL[:, max_negatives - 1 : max_negatives]
    crowded_N = statistics.count_N > max_negatives
    bound_N = torch.where(crowded_N, statistics.ze_NL.gather(1, last_N1)[:, 0], kappa_N)
    last_id_N = torch.where(crowded_N, statistics.tokens_NL.gather(1, last_N1)[:, 0], all_ids_N)
    first_NL = torch.zeros_like(listed_NL).scatter_(1, order_NL[:, :max_negatives], True)
    return bound_N, last_id_N, listed_NL & first_NL


def _whole_rows(
    rows_R: Tensor, states: States, head: Head, inputs: RowInputs, grads: Gradients
) -> TermSums:
    """Some rows by row_slab: their sums, and their gradients added to `grads`."""
    some = inputs._replace(labels_N=inputs.labels_N[rows_R])
    if inputs.rewards is not None:
        some = some._replace(rewards=_entries_of(rows_R, inputs, len(head)))

    # The head's gradients are added up in place; those of the states get room of their own.
    hidden_RH, students_JRH = grads.hidden_NH, grads.students_JNH
    if hidden_RH is not None:
        hidden_RH = torch.zeros_like(hidden_RH[rows_R])
    if students_JRH is not None:
        students_JRH = torch.zeros_like(students_JRH[:, rows_R])
    some_grads = grads._replace(hidden_NH=hidden_RH, students_JNH=students_JRH)
    sums = row_slab.sums_and_gradients(states.select(rows_R), head, some, some_grads)

    if grads.hidden_NH is not None and hidden_RH is not None:
        grads.hidden_NH[rows_R] = hidden_RH
    if grads.students_JNH is not None and students_JRH is not None:
        grads.students_JNH[:, rows_R] = students_JRH
    return sums


def _entries_of(rows_R: Tensor, inputs: RowInputs, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The reward entries of some rows, which are counted anew."""
    assert inputs.rewards is not None
    keys_E, values_E = inputs.rewards
    new_rows_R = torch.arange(len(rows_R), device=rows_R.device)
    place_N = torch.full_like(inputs.labels_N, -1).index_copy_(0, rows_R, new_rows_R)
    place_E = place_N[keys_E // vocab_size]
    inside_E = place_E >= 0
    new_keys_E = place_E * vocab_size + keys_E % vocab_size
    return new_keys_E[inside_E], values_E[inside_E]
