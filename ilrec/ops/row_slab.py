"""The vocabulary operation in slabs of rows, the default: full logits never exist, and gradients
are made on the way forward.

The logits of all rows of 1 + K heads do not fit into memory, and autograd would keep several copies
of them. Here a slab of supervised rows is projected (the last layer's and the readout's rows
stacked, so that each tile of the head is read once for both), reduced to sums, turned into its own
gradient in place, and projected back: four products, nothing computed twice, exact for any number
of hard negatives. Low-precision input gets float32 logits, because rounding changes which tokens
are negatives.

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
from ilrec.ops.fused import States
from ilrec.ops.head_gemm import Gradients, Head, Logits
from ilrec.ops.objective import TermSums
from ilrec.ops.row_inputs import RowInputs

# Memory for logits.
# CPU: measured with H = 576, float32, one core (32 MiB L3), (N, V) = (256, 32,000), (1,024,
# 32,000), (128, 128,256): 64 MiB is within 15 % of the fastest of 8 to 256 MiB, 32 MiB is up to
# 40 % slower.
# CUDA: by arithmetic, not measured. It gives 2 x 620 stacked rows at V = 128,256, and an H100's
# bfloat16 GEMM is compute-bound above 300. With the gradients of N = 4,096 states of H = 4,096
# (0.13 GB) it stays below 0.85 GB.
SLAB_BYTES = {"cpu": 64 * 2**20, "cuda": 640 * 10**6}


def default_slab_bytes(device: torch.device) -> int:
    return SLAB_BYTES.get(device.type, SLAB_BYTES["cuda"])


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def uses_kernel(states: States) -> bool:
    """Whether the Triton kernel does the work between the products. It computes in float32; float64
    on CUDA, which is for checks, is left to PyTorch."""
    return states.hidden_NH.is_cuda and states.dtype == torch.float32 and has_triton()


def row_bytes(states: States, vocab_size: int, student_columns: int, kernel: bool) -> int:
    """Bytes of the logits of one token. PyTorch needs one more row for the ensemble's logits."""
    student_rows = states.num_students
    if student_rows > 0 and not kernel:
        student_rows += 1
    return (vocab_size + student_rows * student_columns) * states.dtype.itemsize


def sums_and_gradients(states: States, head: Head, inputs: RowInputs, grads: Gradients) -> TermSums:
    """The sums over all rows; adds to `grads`. A slab takes inputs.slab_bytes, or one row if that
    is more."""
    # Negatives drawn at random are for ablations; the kernel knows only those of the readout.
    kernel = uses_kernel(states) and inputs.draw is None

    # The students need logits of the candidates only, where candidates are given.
    student_head, position_V = None, None
    if inputs.candidate_ids_C is not None and states.num_students:
        position_V = candidate_positions(inputs.candidate_ids_C, len(head))
        student_head = head.select(inputs.candidate_ids_C, position_V)
    num_columns = len(head if student_head is None else student_head)

    # One piece of memory serves all slabs, one after the other.
    num_rows = len(inputs.labels_N)
    size = row_bytes(states, len(head), num_columns, kernel)
    slab_rows = min(num_rows, max(1, inputs.slab_bytes // size))
    row_logits = len(head) + states.num_students * num_columns
    room = states.hidden_NH.new_empty(slab_rows * row_logits, dtype=states.dtype)

    want_gradient = any(grad is not None for grad in grads)
    sums_5 = room.new_zeros(len(TermSums._fields))
    for start in range(0, num_rows, slab_rows):
        rows = slice(start, min(start + slab_rows, num_rows))
        states_GNH = states.stacked(rows)
        logits = head_gemm.project(states_GNH, head, student_head, room)
        label_ze_N = None
        if student_head is not None:  # the label need not be a candidate
            label_ze_N = head.label_logits(states_GNH[1:].mean(0), inputs.labels_N[rows])
        if kernel:
            sums = _by_kernel(logits, label_ze_N, position_V, rows, inputs, want_gradient)
        else:
            sums = row_math.reduce_rows(
                logits.z_NV, logits.students_JNC, label_ze_N, rows, inputs, want_gradient
            )
        sums_5 += torch.stack(sums)
        if want_gradient:
            head_gemm.project_back(logits, states_GNH, head, student_head, rows, grads)
    return TermSums(*sums_5)


def _by_kernel(
    logits: Logits,
    label_ze_N: Tensor | None,
    position_V: Tensor | None,
    rows: slice,
    inputs: RowInputs,
    want_gradient: bool,
) -> TermSums:
    from ilrec.ops import triton_rows  # imports triton, which need not be installed

    return triton_rows.reduce_rows(
        logits.z_NV, logits.students_JNC, label_ze_N, position_V, rows, inputs, want_gradient
    )


def candidate_positions(candidate_ids_C: Tensor, vocab_size: int) -> Tensor:
    """[V] int32: the place of each token among the candidates, or -1."""
    position_V = torch.full((vocab_size,), -1, dtype=torch.int32, device=candidate_ids_C.device)
    position_V[candidate_ids_C] = torch.arange(
        len(candidate_ids_C), dtype=torch.int32, device=candidate_ids_C.device
    )
    return position_V
