"""What the fused backends share: the states they project, and gradients that are made in the
forward pass.

A backend gets `(states, head, task, grads)`, returns the five sums of `ilrec.ops.STATS` and adds
its gradients to `grads`. They are made in forward, while the head is at hand (ZeRO-3 gathers it
once); backward only scales them, and looks at neither head nor device.

Shape letters: N supervised tokens, K readout layers, J students (readout distributions: the
ensemble, or each layer), H hidden, V vocabulary, R new tokens, E reward entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ilrec.ops.head_gemm import Gradients, Head

if TYPE_CHECKING:
    from ilrec.ops import Objective


class Task(NamedTuple):
    """All that is not differentiated. `rewards`: (keys_E, values_E), key = row * V + token,
    ascending; the tokens that continue an item, whether or not they have a reward."""

    labels_N: Tensor
    objective: Objective
    candidate_ids_C: Tensor | None
    rewards: tuple[Tensor, Tensor] | None
    slab_bytes: int


class States(NamedTuple):
    """hidden_NH and the readout layers; rows are taken, averaged and brought to the logits' dtype a
    slab at a time."""

    hidden_NH: Tensor
    readout_KNH: Tensor | None
    per_layer: bool

    @classmethod
    def of(cls, hidden_NH: Tensor, readout_KNH: Tensor | None, objective: Objective) -> States:
        return cls(
            hidden_NH,
            readout_KNH,
            objective.distillation_weight > 0 and objective.distillation_target == "per_layer",
        )

    @property
    def num_students(self) -> int:
        if self.readout_KNH is None:
            return 0
        return len(self.readout_KNH) if self.per_layer else 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.hidden_NH.dtype, torch.float32)

    def stacked(self, rows: slice) -> Tensor:
        """[1 + J, n, H]: the last layer's states, then the students'. The head is linear: a mean of
        states is a mean of logits."""
        hidden_1NH = self.hidden_NH[rows].to(self.dtype)[None]
        if self.readout_KNH is None:
            return hidden_1NH
        readout_KNH = self.readout_KNH[:, rows]
        students_JNH = (
            readout_KNH.to(self.dtype)
            if self.per_layer
            else readout_KNH.mean(0, keepdim=True, dtype=self.dtype)
        )
        return torch.cat([hidden_1NH, students_JNH])

    def select(self, rows_N: Tensor) -> States:
        readout_KNH = None if self.readout_KNH is None else self.readout_KNH.index_select(1, rows_N)
        return self._replace(
            hidden_NH=self.hidden_NH.index_select(0, rows_N), readout_KNH=readout_KNH
        )


Backend = Callable[[States, Head, Task, Gradients], Tensor]


def cross_layer_sums(
    backend: Backend,
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    labels_N: Tensor,
    *,
    objective: Objective,
    candidates_V: Tensor | None,
    rewards: tuple[Tensor, Tensor] | None,
    new_tokens: tuple[Tensor, Tensor] | None,
    slab_bytes: int,
) -> tuple[Tensor, Tensor]:
    """As `ilrec.ops.reference.cross_layer_sums`, by a fused backend."""
    ids_R, rows_RH = new_tokens if new_tokens is not None else (None, None)
    # The readout layers learn from distillation only.
    if readout_KNH is not None and objective.distillation_weight == 0:
        readout_KNH = readout_KNH.detach()
    inputs = (hidden_NH, readout_KNH, lm_head_VH, rows_RH)
    # Decided here, because inside a Function needs_input_grad is set under no_grad too.
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs
    )
    candidate_ids_C = None if candidates_V is None else candidates_V.nonzero()[:, 0]
    task = Task(labels_N.contiguous(), objective, candidate_ids_C, rewards, slab_bytes)
    loss_sum, stats_5 = _GradientsInForward.apply(*inputs, ids_R, task, wanted, backend)  # type: ignore[no-untyped-call]
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
        task: Task,
        wanted: tuple[bool, ...],
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        objective = task.objective
        states = States.of(hidden_NH, readout_KNH, objective)
        students = None if readout_KNH is None else readout_KNH[: states.num_students]
        grads = Gradients(
            *[
                torch.zeros_like(tensor, dtype=states.dtype, memory_format=torch.contiguous_format)
                if tensor is not None and want
                else None
                for tensor, want in zip(
                    (hidden_NH, students, lm_head_VH, rows_RH), wanted, strict=True
                )
            ]
        )
        sums_5 = backend(states, Head.of(lm_head_VH, ids_R, rows_RH), task, grads)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [
            None if tensor is None else tensor.dtype
            for tensor in (hidden_NH, readout_KNH, lm_head_VH, rows_RH)
        ]
        ctx.num_layers = None if readout_KNH is None else len(readout_KNH)
        loss_sum = (
            sums_5[0]
            + objective.distillation_weight * sums_5[1]
            + objective.reward_weight * sums_5[2]
        )
        stats_5 = sums_5.to(torch.float32, copy=True)
        ctx.mark_non_differentiable(stats_5)
        return loss_sum, stats_5

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: a second backward pass (retain_graph) must find the saved gradients as they
        # were.
        scales = [grad_loss] * 4
        students_JNH = ctx.saved_tensors[1]
        if students_JNH is not None:
            scales[1] = grad_loss * (len(students_JNH) / ctx.num_layers)
        scaled = [
            None if grad is None else (grad * scale).to(dtype)
            for grad, scale, dtype in zip(ctx.saved_tensors, scales, ctx.dtypes, strict=True)
        ]
        if (
            scaled[1] is not None
        ):  # the ensemble's gradient is every layer's, seen K times, not copied
            scaled[1] = scaled[1].expand(ctx.num_layers, -1, -1)
        return (*scaled, None, None, None, None)
