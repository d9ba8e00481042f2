"""Writes a model's safetensors files: allocated whole at once, then filled a block at a time.

A large model is split into shards, as save_pretrained of transformers splits it: several files, and
an index that says which tensor is in which of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ilrec.files.outputs import write_text
from ilrec.weights.tensor_files import DTYPES, StoredTensor, read_header

# The default of transformers' save_pretrained until its version 5.
MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is to be written. dtype: safetensors' name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorWriter:
    """The files of one model. Rows may be written in any order and by any thread.

    tensors: where each of them lies, by name.
    """

    def __init__(
        self, directory: Path, tensors: Iterable[NewTensor], max_shard_bytes: int | None = None
    ) -> None:
        """Makes the files at their full size, so that a full disk is noticed before the work.

        max_shard_bytes: None takes MAX_SHARD_BYTES. Raises OSError if the disk has no space.
        """
        self.directory = directory
        self.tensors: dict[str, StoredTensor] = {}
        # A model that fits one shard is one file without a number and without an index.
        shards = _split_into_shards(list(tensors), max_shard_bytes or MAX_SHARD_BYTES)
        for number, shard in enumerate(shards, 1):
            name = "model.safetensors"
            if len(shards) > 1:
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._allocate(directory / name, shard)
        paths = {tensor.path for tensor in self.tensors.values()}
        self._descriptors = {path: os.open(path, os.O_WRONLY) for path in paths}

    def _allocate(self, path: Path, tensors: list[NewTensor]) -> None:
        """One file: its header, and space for the data of all of its tensors."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        data_bytes = 0
        for tensor in tensors:
            begin = data_bytes
            data_bytes += tensor.num_bytes
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [begin, data_bytes],
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        # Spaces fill the header to a multiple of 8 bytes: the data then begins aligned.
        header += b" " * (-len(header) % 8)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, 8 + len(header) + data_bytes)
        # The header is read back: offsets are computed in one place, and the file is proved valid.
        self.tensors.update(read_header(path))

    def write_rows(self, name: str, start: int, rows: Tensor) -> None:
        """Writes `rows`, which have the tensor's dtype, from row `start` on."""
        tensor = self.tensors[name]
        unwritten = memoryview(cast(Any, rows.contiguous().view(-1).view(torch.uint8).numpy()))
        position = tensor.offset + start * tensor.row_bytes
        descriptor = self._descriptors[tensor.path]
        # One call may write less than it was given (2 GiB at most on Linux).
        while len(unwritten):
            count = os.pwrite(descriptor, unwritten, position)
            unwritten = unwritten[count:]
            position += count

    def close(self) -> None:
        """Flushes all files to the disk. Several files get the index that makes them one model."""
        # A rename that reaches the disk before the data would leave a whole name on half a model.
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
            os.close(descriptor)
        if len(self._descriptors) > 1:
            index = {
                "metadata": {"total_size": sum(t.num_bytes for t in self.tensors.values())},
                "weight_map": {name: tensor.path.name for name, tensor in self.tensors.items()},
            }
            path = self.directory / "model.safetensors.index.json"
            write_text(path, json.dumps(index, indent=1) + "\n")


def _split_into_shards(tensors: list[NewTensor], max_bytes: int) -> list[list[NewTensor]]:
    """Tensors in their order, at most max_bytes in each shard; a tensor that is larger has a shard
    of its own."""
    shards: list[list[NewTensor]] = [[]]
    shard_bytes = 0
    for tensor in tensors:
        if shards[-1] and shard_bytes + tensor.num_bytes > max_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += tensor.num_bytes
    # The widest dtype comes first within a shard. Each tensor's data then begins at a multiple of
    # its own element size.
    for shard in shards:
        shard.sort(key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    return shards
