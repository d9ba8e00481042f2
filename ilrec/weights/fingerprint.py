"""Tells which weights a model has, from a sample of them.

A run records the fingerprint of the weights it starts from. Resuming, ranking and merging compare
it with the weights they are given, and refuse another model of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ilrec.errors import InputError
from ilrec.files.digests import blocks_digest
from ilrec.weights.tensor_files import StoredTensor, read_tensors

# At most so many bytes are read of each tensor. That is enough to tell two fine-tuned versions of a
# model apart, because fine-tuning changes every matrix.
SAMPLE_BYTES = 1024
# A file of another format (GGUF) is sampled in so many blocks, evenly spaced from its first byte to
# its last one. A file smaller than all of the blocks is read whole.
NUM_BLOCKS, BLOCK_BYTES = 256, 4096


def weights_fingerprint(directory: Path, stem: str = "model") -> str:
    """SHA-256, in hex, over the name, dtype, shape and about 1 KiB of the middle of every tensor.

    stem: how the files' names begin ("model", or "adapter_model" for an adapter).
    Raises InputError if the directory has no such safetensors files.
    """

    def blocks() -> Iterator[bytes]:
        # Sorted, so that the fingerprint does not depend on how the tensors are spread over files.
        for name, tensor in sorted(read_tensors(directory, stem).items()):
            yield f"{name} {tensor.dtype} {tensor.shape} ".encode()
            yield _sample(tensor)

    return blocks_digest(blocks())


def file_fingerprint(path: Path) -> str:
    """SHA-256, in hex, over a file's size and blocks of its bytes.

    Raises InputError if there is no such file.
    """
    if not path.is_file():
        raise InputError(f"model: no such file: {path}")
    size = path.stat().st_size
    if size <= NUM_BLOCKS * BLOCK_BYTES:
        starts, length = np.zeros(1, dtype=np.int64), size
    else:
        starts = np.linspace(0, size - BLOCK_BYTES, NUM_BLOCKS, dtype=np.int64)
        length = BLOCK_BYTES

    def blocks() -> Iterator[bytes]:
        yield f"{size} ".encode()
        with open(path, "rb") as file:
            for start in starts:
                file.seek(int(start))
                yield file.read(length)

    return blocks_digest(blocks())


def _sample(tensor: StoredTensor) -> bytes:
    """At most SAMPLE_BYTES bytes, from the middle row on."""
    middle = tensor.num_rows // 2
    count = max(1, SAMPLE_BYTES // max(1, tensor.row_bytes))
    rows = tensor.rows(middle, min(middle + count, tensor.num_rows))
    return rows.view(-1).view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
