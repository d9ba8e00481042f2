"""Which backend computes the vocabulary operation, and why it may not.

row_slab does 4 products and holds whole rows of logits; vocab_stream does 6 and holds a tile of all
rows. A product is limited by reading the head while it has few rows, so that row_slab loses once
its memory is too small for enough of them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch

from ilrec.ops import row_slab
from ilrec.ops.fused import Backend, States

logger = logging.getLogger(__name__)

# Tokens of a slab below which vocab_stream is chosen. By arithmetic, not measured: a bfloat16
# product on an H100 reads the head as fast as it computes at 2 x 150 stacked rows; 4 memory-bound
# products at 80 tokens cost what 6 compute-bound ones at 120 do.
FEW_SLAB_TOKENS = 80


def why_unavailable(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the backend can run on this device with logits of this dtype; else the reason and the
    way out."""
    if name != "vocab_stream":
        return None
    if not row_slab.has_triton():
        return "vocab_stream needs triton, which is not installed; install it, or use backend auto or row_slab"
    from ilrec.ops import triton_math

    if not triton_math.runs_on(device):
        return f"vocab_stream needs a CUDA device, got {device.type}; use backend auto or row_slab"
    if dtype != torch.float32:
        return f"vocab_stream computes in float32, got {dtype} states; use row_slab or reference"
    return None


def choose(name: str, states: States, num_tokens: int, vocab_size: int, slab_bytes: int) -> Backend:
    """The backend that `name` means here. ValueError where it cannot run; `auto` always finds one,
    and says once which."""
    device = states.hidden_NH.device
    if name == "auto":
        name = _automatic(states, num_tokens, vocab_size, slab_bytes)
        _say_once(device.type, name, device.type == "cuda" and not row_slab.has_triton())
    reason = why_unavailable(name, device, states.dtype)
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
def _say_once(device_type: str, name: str, slow: bool) -> None:
    if slow:
        logger.warning(
            "vocabulary operation: triton is not installed, so that PyTorch does its elementwise work on the GPU, at "
            "several times the cost; install the triton that belongs to this torch"
        )
    logger.info("vocabulary operation on %s: %s", device_type, name)
