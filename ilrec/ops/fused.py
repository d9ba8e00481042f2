"""What the fused backends share: the states they project, and gradients that are made in the
forward pass.

A backend gets `(states, head, inputs, grads)`, returns the `TermSums` and adds its gradients to
`grads`. Gradients are made in the forward pass, while the head is at hand (ZeRO-3 gathers it once).
The backward pass only scales them: it needs no head, and it copies nothing to the host.

Shape letters: N supervised tokens, K readout layers, J students (readout distributions: the
ensemble, or each layer), H hidden, V vocabulary, R new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ilrec.ops.head_gemm import Gradients, Head
from ilrec.ops.objective import Objective, TermSums, weigh
from ilrec.ops.row_inputs import RowInputs


class States(NamedTuple):
    """hidden_NH and the readout layers, as given. Rows are taken, averaged and converted to the
    logits' dtype one slab at a time."""

    hidden_NH: Tensor
    readout_KNH: Tensor | None
    per_layer: bool

    @classmethod
    def of(cls, hidden_NH: Tensor, readout_KNH: Tensor | None, objective: Objective) -> States:
        distils = objective.distillation_weight > 0
        return cls(hidden_NH, readout_KNH, distils and objective.distillation_target == "per_layer")

    @property
    def num_students(self) -> int:
        if self.readout_KNH is None:
            return 0
        return len(self.readout_KNH) if self.per_layer else 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.hidden_NH.dtype, torch.float32)

    def stacked(self, rows: slice) -> Tensor:
        """[1 + J, n, H]: the last layer's states, then the students'.

        The head is linear, so that the mean of the layers' logits is the logits of their mean.
        """
        hidden_1NH = self.hidden_NH[rows].to(self.dtype)[None]
        if self.readout_KNH is None:
            return hidden_1NH
        readout_KNH = self.readout_KNH[:, rows]
        if self.per_layer:
            students_JNH = readout_KNH.to(self.dtype)
        else:
            students_JNH = readout_KNH.mean(0, keepdim=True, dtype=self.dtype)
        return torch.cat([hidden_1NH, students_JNH])

    def select(self, rows_N: Tensor) -> States:
        readout_KNH = self.readout_KNH
        if readout_KNH is not None:
            readout_KNH = readout_KNH.index_select(1, rows_N)
        hidden_NH = self.hidden_NH.index_select(0, rows_N)
        return self._replace(hidden_NH=hidden_NH, readout_KNH=readout_KNH)


Backend = Callable[[States, Head, RowInputs, Gradients], TermSums]


def cross_layer_sums(
    backend: Backend,
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    new_tokens: tuple[Tensor, Tensor] | None,
    inputs: RowInputs,
) -> tuple[Tensor, Tensor]:
    """As `ilrec.ops.reference.cross_layer_sums`, by a fused backend."""
    ids_R, rows_RH = new_tokens if new_tokens is not None else (None, None)
    # The readout layers learn from distillation only.
    if readout_KNH is not None and inputs.objective.distillation_weight == 0:
        readout_KNH = readout_KNH.detach()
    leaves = (hidden_NH, readout_KNH, lm_head_VH, rows_RH)
    # Which gradients are wanted is decided here: inside a Function, needs_input_grad is also True
    # under no_grad.
    enabled = torch.is_grad_enabled()
    wanted = [enabled and leaf is not None and leaf.requires_grad for leaf in leaves]
    loss_sum, stats_5 = _GradientsInForward.apply(*leaves, ids_R, inputs, wanted, backend)  # type: ignore[no-untyped-call]
    return loss_sum, stats_5


class _GradientsInForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        readout_KNH: Tensor | None,
        lm_head_VH: Tensor,
        rows_RH: Tensor | None,
        ids_R: Tensor | None,
        inputs: RowInputs,
        wanted: list[bool],
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        # 1. Room for the gradients that are wanted. With the ensemble as student, the K layers have
        #    one gradient in common.
        states = States.of(hidden_NH, readout_KNH, inputs.objective)
        students = None if readout_KNH is None else readout_KNH[: states.num_students]
        learners = (hidden_NH, students, lm_head_VH, rows_RH)
        room = [
            _zeros(tensor, states.dtype) if want else None
            for tensor, want in zip(learners, wanted, strict=True)
        ]
        grads = Gradients(*room)

        # 2. The backend fills it and returns the sums.
        sums = backend(states, Head.of(lm_head_VH, ids_R, rows_RH), inputs, grads)

        # 3. Keep what the backward pass needs: the gradients, and how they are to be returned.
        ctx.save_for_backward(*grads)
        leaves = (hidden_NH, readout_KNH, lm_head_VH, rows_RH)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.num_layers = None if readout_KNH is None else len(readout_KNH)
        stats_5 = torch.stack(sums).to(torch.float32)
        ctx.mark_non_differentiable(stats_5)
        return weigh(sums, inputs.objective), stats_5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The ensemble is the mean of K layers: each of them gets 1 / K of its gradient.
        scales = [grad_loss] * 4
        students_JNH = ctx.saved_tensors[1]
        if students_JNH is not None:
            scales[1] = grad_loss * (len(students_JNH) / ctx.num_layers)
        # Out of place: a second backward pass (retain_graph) must find the saved gradients
        # unchanged.
        scaled: list[Tensor | None] = []
        for grad, scale, dtype in zip(ctx.saved_tensors, scales, ctx.dtypes, strict=True):
            scaled.append(None if grad is None else (grad * scale).to(dtype))
        # Every layer gets the ensemble's gradient: one tensor, seen K times, not copied.
        if scaled[1] is not None:
            scaled[1] = scaled[1].expand(ctx.num_layers, -1, -1)
        return (*scaled, None, None, None, None)


def _zeros(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
