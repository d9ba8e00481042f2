"""The vocabulary operation in slabs of rows: full logits never exist, gradients are made on the way
forward. The default.

Full logits of 1 + K heads do not fit, and autograd would keep several copies. Here a slab of
supervised rows is projected (last layer and readout rows stacked, so each tile of the head is read
once for both), reduced to row statistics, turned into its own
gradient in place, and projected back: four products, no recomputation, exact for any number of hard
    negatives. Low-precision
input gets float32 logits: rounded ones flip selections.

On CUDA one Triton kernel does what lies between the products (triton_rows.py); elsewhere PyTorch
does (row_math.py). Called through `ilrec.ops.cross_layer_loss(..., backend="row_slab")`;
`ilrec.ops.reference` is the specification.

Shape letters: N supervised tokens, J students, V vocabulary, C columns of the students (V, or the
    candidates).
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ilrec.ops import head_gemm, row_math
from ilrec.ops.fused import States, Task
from ilrec.ops.head_gemm import Gradients, Head

# Memory for logits. CPU: measured with H = 576, float32, one core (32 MiB L3), (N, V) = (256,
# 32,000), (1,024, 32,000), (128, 128,256): 64 MiB is within 15 % of the fastest of 8 to 256 MiB, 32
# MiB is up to 40 % slower.
# CUDA: by arithmetic, not measured: 2 x 620 stacked rows at V = 128,256, and an H100's bfloat16
# GEMM is compute-bound above 300; with the gradients of N = 4,096 states of H = 4,096 (0.13 GB), it
# stays below 0.85 GB.
SLAB_BYTES = {"cpu": 64 * 2**20, "cuda": 640 * 10**6}


def default_slab_bytes(device: torch.device) -> int:
    return SLAB_BYTES.get(device.type, SLAB_BYTES["cuda"])


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def uses_kernel(states: States) -> bool:
    """The Triton kernel computes in float32; float64 on CUDA is for checks, and goes the PyTorch
    way."""
    return states.hidden_NH.is_cuda and states.dtype == torch.float32 and has_triton()


def row_bytes(states: States, vocab_size: int, student_columns: int, kernel: bool) -> int:
    """Of the logits of one token. PyTorch needs one scratch row of ensemble logits beside them."""
    num_students = states.num_students + (0 if kernel or states.num_students == 0 else 1)
    return (vocab_size + num_students * student_columns) * states.dtype.itemsize


def sums_and_gradients(states: States, head: Head, task: Task, grads: Gradients) -> Tensor:
    """The five sums of ilrec.ops.STATS; adds to `grads`. Slabs of task.slab_bytes, one row at
    least."""
    kernel = uses_kernel(states)
    student_head, position_V = None, None
    if task.candidate_ids_C is not None and states.num_students:
        position_V = candidate_positions(task.candidate_ids_C, len(head))
        student_head = head.select(task.candidate_ids_C, position_V)
    num_columns = len(head if student_head is None else student_head)
    num_rows = len(task.labels_N)
    size = row_bytes(states, len(head), num_columns, kernel)
    slab_rows = min(num_rows, max(1, task.slab_bytes // size))
    room = states.hidden_NH.new_empty(
        slab_rows * (len(head) + states.num_students * num_columns), dtype=states.dtype
    )
    want_gradient = any(grad is not None for grad in grads)
    sums_5 = room.new_zeros(5)
    for start in range(0, num_rows, slab_rows):
        rows = slice(start, min(start + slab_rows, num_rows))
        states_GNH = states.stacked(rows)
        logits = head_gemm.project(states_GNH, head, student_head, room)
        label_ze_N = None
        if student_head is not None:  # the label need not be a candidate
            label_ze_N = head.label_logits(states_GNH[1:].mean(0), task.labels_N[rows])
        if kernel:
            from ilrec.ops import triton_rows

            sums_5 += triton_rows.reduce_rows(
                logits.z_NV, logits.students_JNC, label_ze_N, position_V, rows, task, want_gradient
            )
        else:
            sums_5 += row_math.reduce_rows(
                logits.z_NV, logits.students_JNC, label_ze_N, rows, task, want_gradient
            )
        if want_gradient:
            head_gemm.project_back(logits, states_GNH, head, student_head, rows, grads)
    return sums_5


def candidate_positions(candidate_ids_C: Tensor, vocab_size: int) -> Tensor:
    """[V] int32: the place of each token among the candidates, or -1."""
    position_V = torch.full((vocab_size,), -1, dtype=torch.int32, device=candidate_ids_C.device)
    position_V[candidate_ids_C] = torch.arange(
        len(candidate_ids_C), dtype=torch.int32, device=candidate_ids_C.device
    )
    return position_V
