"""Which backend computes the vocabulary operation, and why one cannot run.

row_slab does 4 matrix products and holds whole rows of logits; vocab_stream does 6 and holds a tile
of all rows. While a product has few rows, its time is that of reading the head. So row_slab is
slower once its memory is too small for enough rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch

from ilrec.ops import row_slab
from ilrec.ops.fused import Backend, States
from ilrec.ops.row_inputs import RowInputs

logger = logging.getLogger(__name__)

# With fewer tokens a slab than this, vocab_stream is chosen. By arithmetic, not measured: at
# 2 x 150 stacked rows a bfloat16 product on an H100 spends as long on reading the head as on
# computing, and 4 products limited by reading at 80 tokens cost as much as 6 limited by computing
# at 120.
FEW_SLAB_TOKENS = 80


def why_unavailable(
    name: str, device: torch.device, dtype: torch.dtype, negatives_from: str = "readout"
) -> str | None:
    """None if the backend can run on this device, with logits of this dtype and negatives from
    there. Otherwise the reason, and what to use instead."""
    if name != "vocab_stream":
        return None
    if negatives_from == "random":
        return (
            "vocab_stream cannot draw negatives at random (negatives_from: random); use backend "
            "auto, row_slab or reference"
        )
    if not row_slab.has_triton():
        return (
            "vocab_stream needs triton, which is not installed; install it, or use backend auto or "
            "row_slab"
        )
    from ilrec.ops import triton_math

    if not triton_math.runs_on(device):
        return f"vocab_stream needs a CUDA device, got {device.type}; use backend auto or row_slab"
    if dtype != torch.float32:
        return f"vocab_stream computes in float32, got {dtype} states; use row_slab or reference"
    return None


def choose(name: str, states: States, vocab_size: int, inputs: RowInputs) -> Backend:
    """The backend that `name` means here. `auto` always finds one, and logs which one once.

    Raises ValueError if the named backend cannot run.
    """
    device = states.hidden_NH.device
    if name == "auto":
        name = "row_slab"
        if inputs.draw is None:
            name = _automatic(states, len(inputs.labels_N), vocab_size, inputs.slab_bytes)
        _log_once(device.type, name, device.type == "cuda" and not row_slab.has_triton())
    negatives_from = "readout" if inputs.draw is None else "random"
    reason = why_unavailable(name, device, states.dtype, negatives_from)
    if reason:
        raise ValueError(f"backend: {reason}")
    return _BACKENDS[name]()


def _automatic(states: States, num_tokens: int, vocab_size: int, slab_bytes: int) -> str:
    if not row_slab.uses_kernel(states):
        return "row_slab"
    slab_tokens = slab_bytes // row_slab.row_bytes(states, vocab_size, vocab_size, kernel=True)
    return "vocab_stream" if slab_tokens < min(num_tokens, FEW_SLAB_TOKENS) else "row_slab"


def _stream() -> Backend:
    from ilrec.ops import vocab_stream  # imports triton

    return vocab_stream.sums_and_gradients


_BACKENDS: dict[str, Callable[[], Backend]] = {
    "row_slab": lambda: row_slab.sums_and_gradients,
    "vocab_stream": _stream,
}


@functools.cache
def _log_once(device_type: str, name: str, slow: bool) -> None:
    if slow:
        logger.warning(
            "vocabulary operation: triton is not installed, so PyTorch does the work between the "
            "matrix products, which takes several times as long; install the triton release that "
            "belongs to this torch"
        )
    logger.info("vocabulary operation on %s: %s", device_type, name)
