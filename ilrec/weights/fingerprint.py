"""Which weights a model has, told apart without reading them whole. A run records it; going on and
merging compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ilrec.errors import InputError
from ilrec.files.digests import blocks_digest
from ilrec.weights.tensor_files import StoredTensor, read_tensors

# Of each tensor: two fine-tuned versions of a model differ in every matrix, and a file is not read
# for more than its header.
SAMPLE_BYTES = 1024
# Of a file of another format: so many blocks, evenly spaced, both ends among them. A smaller one is
# read whole.
NUM_BLOCKS, BLOCK_BYTES = 256, 4096


def weights_fingerprint(directory: Path, stem: str = "model") -> str:
    """SHA-256 over every tensor's name, dtype, shape and the rows in its middle, about 1 KiB.
    InputError: no safetensors there."""

    def blocks() -> Iterator[bytes]:
        for name, tensor in sorted(read_tensors(directory, stem).items()):
            yield f"{name} {tensor.dtype} {tensor.shape} ".encode()
            yield _sample(tensor)

    return blocks_digest(blocks())


def file_fingerprint(path: Path) -> str:
    """SHA-256 over a file's size and blocks of it. InputError: no such file."""
    if not path.is_file():
        raise InputError(f"model: no such file: {path}")
    size = path.stat().st_size
    starts, length = np.zeros(1, dtype=np.int64), size
    if size > NUM_BLOCKS * BLOCK_BYTES:
        starts, length = np.linspace(0, size - BLOCK_BYTES, NUM_BLOCKS, dtype=np.int64), BLOCK_BYTES

    def blocks() -> Iterator[bytes]:
        yield f"{size} ".encode()
        with open(path, "rb") as file:
            for start in starts:
                file.seek(int(start))
                yield file.read(length)

    return blocks_digest(blocks())


def _sample(tensor: StoredTensor) -> bytes:
    middle, count = tensor.num_rows // 2, max(1, SAMPLE_BYTES // max(1, tensor.row_bytes))
    rows = tensor.rows(middle, min(middle + count, tensor.num_rows))
    return rows.view(-1).view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
