"""The matrix products of the vocabulary operation: states to logits, and logit gradients back to
states, head and new-token rows.

A `Head` is the LM head, or a part of it, as the columns of some logits. Trained rows of new tokens
replace the head's own rows without a copy of the head: their columns are overwritten after the
product, and taken out of the gradient before the product back. Logits and gradients are float32
(float64 for float64 input), whatever the head's dtype.

Shape letters: N rows, G row groups stacked (last layer, then J students), M = G * N, H hidden, V
vocabulary, C columns (tokens) of a part of the head, R new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Head rows that are copied at a time, where they have to be: to float32, if no GEMM makes float32
# output of low-precision input; or together, if the columns are not a range of tokens. 64 MiB of
# float32 at H = 4096.
TILE_TOKENS = 4096


@dataclass(frozen=True)
class Head:
    """The rows of the LM head that are the columns of some logits.

    weight_VH: rows of the LM head.
    ids_C: those that are columns of the logits. None: all.
    rows_RH: rows of new tokens, any float dtype.
    columns_R, used_R: column columns_R[i] is made by row used_R[i] of rows_RH.
    """

    weight_VH: Tensor
    ids_C: Tensor | None = None
    rows_RH: Tensor | None = None
    columns_R: Tensor | None = None
    used_R: Tensor | None = None

    @classmethod
    def of(cls, weight_VH: Tensor, new_ids_R: Tensor | None, rows_RH: Tensor | None) -> Head:
        if new_ids_R is None or rows_RH is None:
            return cls(weight_VH)
        used_R = torch.arange(len(new_ids_R), device=new_ids_R.device)
        return cls(weight_VH, None, rows_RH, new_ids_R, used_R)

    def __len__(self) -> int:
        return len(self.weight_VH if self.ids_C is None else self.ids_C)

    def narrow(self, first: int, last: int) -> Head:
        """The columns [first, last) alone. The weight is not copied."""
        columns_R, used_R = self.columns_R, self.used_R
        if columns_R is not None and used_R is not None:
            inside_R = ((columns_R >= first) & (columns_R < last)).nonzero()[:, 0]
            columns_R, used_R = columns_R[inside_R] - first, used_R[inside_R]
        part = replace(self, columns_R=columns_R, used_R=used_R)
        if self.ids_C is not None:
            return replace(part, ids_C=self.ids_C[first:last])
        return replace(part, weight_VH=self.weight_VH[first:last])

    def select(self, ids_C: Tensor, position_V: Tensor) -> Head:
        """The tokens ids_C of a whole head. position_V: the column that each token gets, or -1."""
        columns_R, used_R = self.columns_R, self.used_R
        if columns_R is not None and used_R is not None:
            columns_R = position_V[columns_R].long()
            inside_R = (columns_R >= 0).nonzero()[:, 0]
            columns_R, used_R = columns_R[inside_R], used_R[inside_R]
        return replace(self, ids_C=ids_C, columns_R=columns_R, used_R=used_R)

    def label_logits(self, states_NH: Tensor, labels_N: Tensor) -> Tensor:
        """[N]: the logit of token labels_N[n] in row n, rounded as `project` rounds. For a whole
        head."""
        rows_NH = self.weight_VH.index_select(0, labels_N).to(states_NH.dtype)
        logits_N = (self._rounded(states_NH) * rows_NH).sum(1)
        if self.columns_R is not None and self.rows_RH is not None:
            # Where the label is a new token, the logit is made with that token's own row.
            hit_NR = labels_N[:, None] == self.columns_R
            new_rows_NH = self.rows_RH[hit_NR.int().argmax(1)].to(states_NH.dtype)
            new_N = (states_NH * new_rows_NH).sum(1)
            logits_N = torch.where(hit_NR.any(1), new_N, logits_N)
        return logits_N

    def project(self, states_MH: Tensor, logits_MC: Tensor) -> None:
        """Writes the logits into logits_MC. States have its dtype."""
        weight_VH, dtype = self.weight_VH, states_MH.dtype
        if self.ids_C is None and weight_VH.dtype == dtype:
            torch.mm(states_MH, weight_VH.T, out=logits_MC)
        elif self.ids_C is None and _has_mixed_gemm(weight_VH):
            low_MH = states_MH.to(weight_VH.dtype)
            torch.mm(low_MH, weight_VH.T, out_dtype=dtype, out=logits_MC)
        else:
            rounded_MH = self._rounded(states_MH)
            for tile, weight_TH in self._tiles(dtype):
                logits_MC[:, tile] = rounded_MH @ weight_TH.T
        if self.columns_R is not None:
            new_logits_MR = states_MH @ self._new_rows(dtype).T
            logits_MC.index_copy_(1, self.columns_R, new_logits_MR)

    def project_back(
        self,
        grad_MC: Tensor,
        groups: slice,
        states_NH: Tensor,
        grad_head_VH: Tensor | None,
        grad_rows_RH: Tensor | None,
    ) -> Tensor:
        """d/d(states) [M', H] of the rows `groups` of grad_MC, which is overwritten.

        Its first N rows are those of states_NH. Their gradients are added to those of the head (of
        the same tokens) and of the new rows, unless these are None. The students' rows give nothing
        to either, because distillation must not move the teacher.
        """
        # The columns of new tokens belong to rows_RH, and are taken out before the head's product.
        through_new_MH: Tensor | None = None
        num_last = len(states_NH)
        if self.columns_R is not None and self.used_R is not None:
            columns_MR = grad_MC.index_select(1, self.columns_R)
            grad_MC.index_fill_(1, self.columns_R, 0.0)
            through_new_MH = columns_MR[groups] @ self._new_rows(grad_MC.dtype)
            if grad_rows_RH is not None:
                grad_rows_RH.index_add_(0, self.used_R, columns_MR[:num_last].T @ states_NH)
        if grad_head_VH is not None:
            _add_head_gradient_(grad_head_VH, grad_MC[:num_last], states_NH, self.weight_VH)
        grad_MH = self._times(grad_MC[groups])
        if through_new_MH is not None:
            grad_MH.add_(through_new_MH)
        return grad_MH

    def _times(self, grad_MC: Tensor) -> Tensor:
        """grad_MC times the head's rows, [M, H]."""
        weight_VH = self.weight_VH
        if self.ids_C is None and weight_VH.dtype == grad_MC.dtype:
            return grad_MC @ weight_VH
        grad_MH = grad_MC.new_zeros((len(grad_MC), weight_VH.shape[1]))
        if _has_mixed_gemm(weight_VH):
            for tile, weight_TH in self._tiles(weight_VH.dtype):
                low_MT = grad_MC[:, tile].to(weight_VH.dtype)
                grad_MH += torch.mm(low_MT, weight_TH, out_dtype=grad_MH.dtype)
            return grad_MH
        for tile, weight_TH in self._tiles(grad_MC.dtype):
            grad_MH.addmm_(grad_MC[:, tile], weight_TH)
        return grad_MH

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some columns at a time, and their rows of the head in `dtype`."""
        for start in range(0, len(self), TILE_TOKENS):
            tile = slice(start, start + TILE_TOKENS)
            if self.ids_C is None:
                rows_TH = self.weight_VH[tile]
            else:
                rows_TH = self.weight_VH.index_select(0, self.ids_C[tile])
            yield tile, rows_TH.to(dtype)

    def _new_rows(self, dtype: torch.dtype) -> Tensor:
        assert self.rows_RH is not None and self.used_R is not None
        return self.rows_RH.index_select(0, self.used_R).to(dtype)

    def _rounded(self, states_MH: Tensor) -> Tensor:
        """The states with the precision in which the mixed GEMM reads them."""
        if not _has_mixed_gemm(self.weight_VH):
            return states_MH
        return states_MH.to(self.weight_VH.dtype).to(states_MH.dtype)


class Logits(NamedTuple):
    """z_NV of the last layer; students_JNC over the same tokens, or over the candidates.

    stacked_MV: both in one tensor, where the tokens are the same; else None.
    """

    z_NV: Tensor
    students_JNC: Tensor
    stacked_MV: Tensor | None


def project(states_GNH: Tensor, head: Head, student_head: Head | None, room: Tensor) -> Logits:
    """Logits of some rows, in the flat memory `room`.

    One product reads the head once for all groups, unless the students have a head of their own
    (the candidates).
    """
    num_groups, num_rows, _ = states_GNH.shape
    size = num_rows * len(head)
    if student_head is None:
        stacked_MV = room[: num_groups * size].view(num_groups * num_rows, len(head))
        head.project(states_GNH.flatten(0, 1), stacked_MV)
        logits_GNV = stacked_MV.view(num_groups, num_rows, len(head))
        return Logits(logits_GNV[0], logits_GNV[1:], stacked_MV)

    z_NV = room[:size].view(num_rows, len(head))
    head.project(states_GNH[0], z_NV)
    student_shape = (num_groups - 1, num_rows, len(student_head))
    student_size = (num_groups - 1) * num_rows * len(student_head)
    students_JNC = room[size : size + student_size].view(student_shape)
    # A tile of the vocabulary may be without any candidate.
    if len(student_head):
        student_head.project(states_GNH[1:].flatten(0, 1), students_JNC.flatten(0, 1))
    return Logits(z_NV, students_JNC, None)


class Gradients(NamedTuple):
    """Sums over the tokens' losses, in the logits' dtype; None where no gradient is wanted."""

    hidden_NH: Tensor | None
    students_JNH: Tensor | None
    head_VH: Tensor | None
    rows_RH: Tensor | None


def project_back(
    logits: Logits,
    states_GNH: Tensor,
    head: Head,
    student_head: Head | None,
    rows: slice,
    grads: Gradients,
) -> None:
    """Adds to `grads` what some rows give to it. `logits` holds the gradients of the logits, in
    their place.

    grads.head_VH is the gradient of the same tokens of the head that the logits' columns are.
    """
    num_rows = len(logits.z_NV)
    want_hidden, want_students = grads.hidden_NH is not None, grads.students_JNH is not None
    if logits.stacked_MV is not None:
        # One product for all groups of which a gradient is wanted.
        first, last = 0 if want_hidden else num_rows, None if want_students else num_rows
        grad_MH = head.project_back(
            logits.stacked_MV, slice(first, last), states_GNH[0], grads.head_VH, grads.rows_RH
        )
        hidden_MH, students_MH = grad_MH[:num_rows], grad_MH[num_rows - first :]
    else:
        # The last layer and the students have columns of their own, hence a product each.
        assert student_head is not None
        hidden = slice(0, num_rows if want_hidden else 0)
        hidden_MH = head.project_back(
            logits.z_NV, hidden, states_GNH[0], grads.head_VH, grads.rows_RH
        )
        want_students = want_students and len(student_head) > 0
        if want_students:
            students_MC = logits.students_JNC.flatten(0, 1)
            students_MH = student_head.project_back(
                students_MC, slice(None), states_GNH[0], None, None
            )
    if grads.hidden_NH is not None:
        grads.hidden_NH[rows] += hidden_MH
    if grads.students_JNH is not None and want_students:
        grads.students_JNH[:, rows] += students_MH.view(-1, num_rows, students_MH.shape[1])


def _add_head_gradient_(
    grad_VH: Tensor, grad_NV: Tensor, states_NH: Tensor, weight_VH: Tensor
) -> None:
    if not _has_mixed_gemm(weight_VH):
        grad_VH.addmm_(grad_NV.T, states_NH)
        return
    low_NH = states_NH.to(weight_VH.dtype)
    for start in range(0, len(grad_VH), TILE_TOKENS):
        tile = slice(start, start + TILE_TOKENS)
        low_TN = grad_NV[:, tile].to(weight_VH.dtype).T
        grad_VH[tile] += torch.mm(low_TN, low_NH, out_dtype=grad_VH.dtype)


def _has_mixed_gemm(weight_VH: Tensor) -> bool:
    """Whether a GEMM takes this dtype and makes float32 of it. True for bfloat16 on CUDA, but not
    for float16, in which small probabilities would become zero on the way back."""
    return weight_VH.is_cuda and weight_VH.dtype == torch.bfloat16
