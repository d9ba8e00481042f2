"""The matrix products of row_slab: states to logits, and logit gradients back to states, head and new-token rows.

The head's rows at the new tokens' ids are replaced by rows of their own, without ever copying the head: their columns
of the logits are written after the product, and taken out of the gradient before the product back.
Logits and gradients are float32 (float64 for float64 input) whatever the head's dtype.

Shape letters: N rows of the slab, G row groups stacked (last layer, then J students), M = G * N, H hidden,
V vocabulary, R new tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Head rows copied to float32 at a time where no GEMM takes low-precision input to float32 output: 64 MiB at H = 4096.
TILE_TOKENS = 4096


def project(
    states_GNH: Tensor, lm_head_VH: Tensor, new_tokens: tuple[Tensor, Tensor] | None, slab_MV: Tensor
) -> Tensor:
    """Logits [G, N, V], written into the first G * N rows of the slab. States have the slab's dtype."""
    states_MH = states_GNH.flatten(0, 1)
    logits_MV = slab_MV[: len(states_MH)]
    if lm_head_VH.dtype == states_MH.dtype:
        torch.mm(states_MH, lm_head_VH.T, out=logits_MV)
    elif _has_mixed_gemm(lm_head_VH):
        torch.mm(states_MH.to(lm_head_VH.dtype), lm_head_VH.T, out_dtype=logits_MV.dtype, out=logits_MV)
    else:
        for tile in _tiles(lm_head_VH):
            logits_MV[:, tile] = states_MH @ lm_head_VH[tile].to(states_MH.dtype).T
    if new_tokens is not None:
        ids_R, rows_RH = new_tokens
        logits_MV.index_copy_(1, ids_R, states_MH @ rows_RH.to(states_MH.dtype).T)
    return logits_MV.view(*states_GNH.shape[:2], -1)


def project_back(
    grad_GNV: Tensor, states_GNH: Tensor, lm_head_VH: Tensor, new_tokens: tuple[Tensor, Tensor] | None, rows: slice,
    grads: list[Tensor | None],
) -> None:
    """Adds a slab's gradients to `grads` (hidden, students, head, new-token rows); the slab is consumed.

    Students give nothing to the head or to its new rows: distillation must not move the teacher.
    """
    grad_hidden_NH, grad_students_JNH, grad_head_VH, grad_rows_RH = grads
    groups = slice(0 if grad_hidden_NH is not None else 1, None if grad_students_JNH is not None else 1)
    through_new_GNH: Tensor | float = 0.0
    if new_tokens is not None:
        ids_R, rows_RH = new_tokens
        columns_GNR = grad_GNV.index_select(2, ids_R)
        grad_GNV.index_fill_(2, ids_R, 0.0)
        through_new_GNH = columns_GNR[groups] @ rows_RH.to(columns_GNR.dtype)
        if grad_rows_RH is not None:
            grad_rows_RH.addmm_(columns_GNR[0].T, states_GNH[0])
    if grad_head_VH is not None:
        _add_head_gradient_(grad_head_VH, grad_GNV[0], states_GNH[0], lm_head_VH)
    if len(grad_GNV[groups]) == 0:
        return
    grad_GNH = _times_head(grad_GNV[groups].flatten(0, 1), lm_head_VH).view(-1, *states_GNH.shape[1:])
    grad_GNH += through_new_GNH
    if grad_hidden_NH is not None:
        grad_hidden_NH[rows] = grad_GNH[0]
    if grad_students_JNH is not None:
        grad_students_JNH[:, rows] = grad_GNH[-len(grad_students_JNH):]


def _times_head(grad_MV: Tensor, lm_head_VH: Tensor) -> Tensor:
    if lm_head_VH.dtype == grad_MV.dtype:
        return grad_MV @ lm_head_VH
    if _has_mixed_gemm(lm_head_VH):
        return torch.mm(grad_MV.to(lm_head_VH.dtype), lm_head_VH, out_dtype=grad_MV.dtype)
    grad_MH = grad_MV.new_zeros((len(grad_MV), lm_head_VH.shape[1]))
    for tile in _tiles(lm_head_VH):
        grad_MH.addmm_(grad_MV[:, tile], lm_head_VH[tile].to(grad_MV.dtype))
    return grad_MH


def _add_head_gradient_(grad_VH: Tensor, grad_NV: Tensor, states_NH: Tensor, lm_head_VH: Tensor) -> None:
    if not _has_mixed_gemm(lm_head_VH):
        grad_VH.addmm_(grad_NV.T, states_NH)
        return
    states_NH, grad_NV = states_NH.to(lm_head_VH.dtype), grad_NV.to(lm_head_VH.dtype)
    for tile in _tiles(lm_head_VH):
        grad_VH[tile] += torch.mm(grad_NV[:, tile].T, states_NH, out_dtype=grad_VH.dtype)


def _has_mixed_gemm(lm_head_VH: Tensor) -> bool:
    """bfloat16 in, float32 out. Not float16: small probabilities would be flushed to zero on the way back."""
    return lm_head_VH.is_cuda and lm_head_VH.dtype == torch.bfloat16


def _tiles(lm_head_VH: Tensor) -> list[slice]:
    return [slice(start, start + TILE_TOKENS) for start in range(0, len(lm_head_VH), TILE_TOKENS)]
