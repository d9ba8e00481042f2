"""The matrix products of the vocabulary operation: states to logits, and logit gradients back to
states, head and new-token rows.

A `Head` is the LM head, or a part of it, as the columns of some logits. Trained rows of new tokens
stand in for the head's own without
ever copying it: their columns are written after the product, and taken out of the gradient before
the product back. Logits and gradients are float32 (float64 for float64 input) whatever the head's
dtype.

Shape letters: N rows, G row groups stacked (last layer, then J students), M = G * N, H hidden, V
vocabulary, C columns (tokens) of a part of the head, R new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Head rows copied at a time where they must be: to float32 where no GEMM takes low-precision input
# to float32 output, or gathered where the columns are not a range of tokens. 64 MiB of float32 at H
# = 4096.
TILE_TOKENS = 4096


@dataclass(frozen=True)
class Head:
    """weight_VH: rows of the LM head. ids_C: those that are columns of the logits; None: all.

    rows_RH: rows of new tokens, any float dtype; columns_R and used_R: which column takes which of
        them.
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
        return cls(
            weight_VH,
            None,
            rows_RH,
            new_ids_R,
            torch.arange(len(new_ids_R), device=new_ids_R.device),
        )

    def __len__(self) -> int:
        return len(self.weight_VH if self.ids_C is None else self.ids_C)

    def narrow(self, first: int, last: int) -> Head:
        """The columns [first, last); nothing is copied."""
        columns_R, used_R = self.columns_R, self.used_R
        if columns_R is not None and used_R is not None:
            inside_R = ((columns_R >= first) & (columns_R < last)).nonzero()[:, 0]
            columns_R, used_R = columns_R[inside_R] - first, used_R[inside_R]
        if self.ids_C is not None:
            return replace(self, ids_C=self.ids_C[first:last], columns_R=columns_R, used_R=used_R)
        return replace(
            self, weight_VH=self.weight_VH[first:last], columns_R=columns_R, used_R=used_R
        )

    def select(self, ids_C: Tensor, position_V: Tensor) -> Head:
        """Of a whole head, the tokens ids_C alone; position_V is the column of each token, -1 for
        the others."""
        columns_R, used_R = self.columns_R, self.used_R
        if columns_R is not None and used_R is not None:
            columns_R = position_V[columns_R].long()
            inside_R = (columns_R >= 0).nonzero()[:, 0]
            columns_R, used_R = columns_R[inside_R], used_R[inside_R]
        return replace(self, ids_C=ids_C, columns_R=columns_R, used_R=used_R)

    def label_logits(self, states_NH: Tensor, labels_N: Tensor) -> Tensor:
        """Of a whole head: row n's logit of token labels_N[n], rounded as `project` rounds. [N]"""
        rows_NH = self.weight_VH.index_select(0, labels_N).to(states_NH.dtype)
        logits_N = (self._rounded(states_NH) * rows_NH).sum(1)
        if self.columns_R is not None and self.rows_RH is not None:
            hit_NR = labels_N[:, None] == self.columns_R
            new_N = (states_NH * self.rows_RH[hit_NR.int().argmax(1)].to(states_NH.dtype)).sum(1)
            logits_N = torch.where(hit_NR.any(1), new_N, logits_N)
        return logits_N

    def project(self, states_MH: Tensor, logits_MC: Tensor) -> None:
        """Logits, into logits_MC. States have its dtype."""
        weight_VH = self.weight_VH
        if self.ids_C is None and weight_VH.dtype == states_MH.dtype:
            torch.mm(states_MH, weight_VH.T, out=logits_MC)
        elif self.ids_C is None and _has_mixed_gemm(weight_VH):
            torch.mm(
                states_MH.to(weight_VH.dtype), weight_VH.T, out_dtype=logits_MC.dtype, out=logits_MC
            )
        else:
            states_MH_ = self._rounded(states_MH)
            for tile, weight_TH in self._tiles(states_MH.dtype):
                logits_MC[:, tile] = states_MH_ @ weight_TH.T
        if self.columns_R is not None:
            logits_MC.index_copy_(1, self.columns_R, states_MH @ self._new_rows(states_MH.dtype).T)

    def project_back(
        self,
        grad_MC: Tensor,
        groups: slice,
        states_NH: Tensor,
        grad_head_VH: Tensor | None,
        grad_rows_RH: Tensor | None,
    ) -> Tensor:
        """d/d(states) [M', H] of the rows `groups`; grad_MC is consumed.

        Its first N rows are those of states_NH: their gradients are added to the head (of the same
        tokens) and to the new rows where these are not None. Students give nothing to either:
        distillation must not move the teacher.
        """
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
        return grad_MH if through_new_MH is None else grad_MH.add_(through_new_MH)

    def _times(self, grad_MC: Tensor) -> Tensor:
        weight_VH = self.weight_VH
        if self.ids_C is None and weight_VH.dtype == grad_MC.dtype:
            return grad_MC @ weight_VH
        grad_MH = grad_MC.new_zeros((len(grad_MC), weight_VH.shape[1]))
        if _has_mixed_gemm(weight_VH):
            for tile, weight_TH in self._tiles(weight_VH.dtype):
                grad_MH += torch.mm(
                    grad_MC[:, tile].to(weight_VH.dtype), weight_TH, out_dtype=grad_MH.dtype
                )
            return grad_MH
        for tile, weight_TH in self._tiles(grad_MC.dtype):
            grad_MH.addmm_(grad_MC[:, tile], weight_TH)
        return grad_MH

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self), TILE_TOKENS):
            tile = slice(start, start + TILE_TOKENS)
            rows = (
                self.weight_VH[tile]
                if self.ids_C is None
                else self.weight_VH.index_select(0, self.ids_C[tile])
            )
            yield tile, rows.to(dtype)

    def _new_rows(self, dtype: torch.dtype) -> Tensor:
        assert self.rows_RH is not None and self.used_R is not None
        return self.rows_RH.index_select(0, self.used_R).to(dtype)

    def _rounded(self, states_MH: Tensor) -> Tensor:
        return (
            states_MH.to(self.weight_VH.dtype).to(states_MH.dtype)
            if _has_mixed_gemm(self.weight_VH)
            else states_MH
        )


class Logits(NamedTuple):
    """z_NV of the last layer; students_JNC over the same tokens, then both lie in stacked_MV, or
    over candidates."""

    z_NV: Tensor
    students_JNC: Tensor
    stacked_MV: Tensor | None


def project(states_GNH: Tensor, head: Head, student_head: Head | None, room: Tensor) -> Logits:
    """Logits of some rows into the flat memory `room`. One product reads the head once for all
    groups, unless the students have a head of their own (the candidates)."""
    num_groups, num_rows, _ = states_GNH.shape
    if student_head is None:
        stacked_MV = room[: num_groups * num_rows * len(head)].view(
            num_groups * num_rows, len(head)
        )
        head.project(states_GNH.flatten(0, 1), stacked_MV)
        logits_GNV = stacked_MV.view(num_groups, num_rows, len(head))
        return Logits(logits_GNV[0], logits_GNV[1:], stacked_MV)
    split = num_rows * len(head)
    z_NV = room[:split].view(num_rows, len(head))
    num_student_rows = (num_groups - 1) * num_rows
    students_MC = room[split : split + num_student_rows * len(student_head)].view(
        num_student_rows, len(student_head)
    )
    head.project(states_GNH[0], z_NV)
    if len(student_head):
        student_head.project(states_GNH[1:].flatten(0, 1), students_MC)
    return Logits(z_NV, students_MC.view(num_groups - 1, num_rows, len(student_head)), None)


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
    """Adds the gradients of some rows' logits (in place of them) to `grads`; head_VH is that of the
    head's own tokens."""
    num_rows = len(logits.z_NV)
    want_hidden, want_students = grads.hidden_NH is not None, grads.students_JNH is not None
    if logits.stacked_MV is not None:
        groups = slice(0 if want_hidden else num_rows, None if want_students else num_rows)
        grad_MH = head.project_back(
            logits.stacked_MV, groups, states_GNH[0], grads.head_VH, grads.rows_RH
        )
        hidden_MH, students_MH = grad_MH[:num_rows], grad_MH[num_rows if want_hidden else 0 :]
    else:
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
    states_NH, grad_NV = states_NH.to(weight_VH.dtype), grad_NV
    for start in range(0, len(grad_VH), TILE_TOKENS):
        tile = slice(start, start + TILE_TOKENS)
        grad_VH[tile] += torch.mm(
            grad_NV[:, tile].to(weight_VH.dtype).T, states_NH, out_dtype=grad_VH.dtype
        )


def _has_mixed_gemm(weight_VH: Tensor) -> bool:
    """bfloat16 in, float32 out. Not float16: small probabilities would be flushed to zero on the
    way back."""
    return weight_VH.is_cuda and weight_VH.dtype == torch.bfloat16
