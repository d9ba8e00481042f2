"""Which weights a base has, told apart without reading them whole: a run records it, a merge compares it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ilrec.merging.tensor_files import StoredTensor, read_tensors

# Of each tensor: two fine-tuned versions of a model differ in every matrix, and a file is not read for more than its header.
SAMPLE_BYTES = 1024


def weights_fingerprint(directory: Path) -> str:
    """SHA-256 over every tensor's name, dtype, shape and the rows in its middle, about 1 KiB. InputError: no safetensors there."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(directory).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    middle, count = tensor.num_rows // 2, max(1, SAMPLE_BYTES // max(1, tensor.row_bytes))
    rows = tensor.rows(middle, min(middle + count, tensor.num_rows))
    return rows.view(-1).view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
