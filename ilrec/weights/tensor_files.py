"""Reads safetensors files a block of rows at a time, without mapping them into memory.

The format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes with the length of the
header; the header, JSON with {name: dtype, shape, data_offsets}; the data.

The safetensors package maps whole files, and mapped pages count as used memory where a job has a
memory limit. Blocks that are read at their offset do not, and several threads may read at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ilrec.errors import InputError
from ilrec.files.reading import read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Integers are quantised weights: an update cannot be added to them.
MERGEABLE = ("F64", "F32", "F16", "BF16")
# How transformers' decoder models call these two; the embedding has a prefix before its name.
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Two tensors are compared in blocks of this size.
COMPARED_BYTES = 4 * 2**20
# The safetensors package refuses larger headers, too.
MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file. Nothing of it is in memory until rows() is called.

    dtype: safetensors' name of it, a key of DTYPES. offset: the data's first byte in the file.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_rows(self) -> int:
        """Its size along the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Reads rows `start` to `stop` (default: all) in the stored dtype: [stop - start, ...].

        Raises InputError if the file is no longer there, or is shorter than it was.
        """
        stop = self.num_rows if stop is None else stop
        # Read as bytes and viewed as the dtype, because numpy has no bfloat16.
        buffer = torch.empty((stop - start) * self.row_bytes, dtype=torch.uint8)
        unread = memoryview(cast(Any, buffer.numpy()))
        position = self.offset + start * self.row_bytes
        with _opened(self.path) as descriptor:
            # One call may read less than was asked for (2 GiB at most on Linux).
            while len(unread):
                count = os.preadv(descriptor, [unread], position)
                if count == 0:
                    raise InputError(
                        f"{self.path}: the file ended within {self.name}: it was cut short while "
                        "it was read"
                    )
                unread = unread[count:]
                position += count
        return buffer.view(DTYPES[self.dtype]).view(stop - start, *self.shape[1:])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor of `path`, for reading."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise InputError(
            f"{path}: disappeared while it was read: a running training removes its older "
            "checkpoints; copy the checkpoint first"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name. Raises InputError if it is not a whole safetensors file."""
    try:
        tensors, data_begin = _parse_header(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; the model directory is incomplete, copy or download it again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a safetensors file: {error}; copy or download it again"
        ) from None

    # The data has to end where the file ends: a download that broke off is shorter.
    ends = [tensor.offset + tensor.num_bytes for tensor in tensors.values()]
    expected_size = max(ends, default=data_begin)
    if expected_size != size:
        raise InputError(
            f"{path}: has {size:,} bytes, its header says {expected_size:,}: truncated or damaged; "
            "copy or download it again"
        )
    return tensors


def _parse_header(path: Path) -> tuple[dict[str, StoredTensor], int]:
    """({name: tensor}, offset of the data). Raises ValueError, KeyError, TypeError or
    AttributeError if the header is not as the format wants it."""
    # The length is checked before so many bytes are read: a file of another kind may promise any.
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its first 8 bytes promise a header of {length:,} bytes")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    data_begin = 8 + length
    tensors = {name: _stored(path, name, entry, data_begin) for name, entry in entries.items()}
    return tensors, data_begin


def _stored(path: Path, name: str, entry: Mapping, data_begin: int) -> StoredTensor:
    """The tensor of one entry of the header. Raises ValueError if the entry contradicts itself."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = entry["data_offsets"]
    tensor = StoredTensor(path, name, entry["dtype"], shape, data_begin + start)
    if tensor.num_bytes != stop - start or min(shape, default=1) < 0:
        raise ValueError(f"{name} of shape {list(shape)} does not fill its {stop - start:,} bytes")
    return tensor


def read_tensors(directory: Path, stem: str = "model") -> dict[str, StoredTensor]:
    """All tensors of a model directory, by name: those of {stem}.safetensors, or of the shards that
    {stem}.safetensors.index.json names.

    Raises InputError if there are no such files, a shard lacks a tensor that the index promises,
    or a tensor is empty.
    """
    whole = directory / f"{stem}.safetensors"
    index = directory / f"{stem}.safetensors.index.json"
    if index.exists():
        tensors = _read_shards(index)
    elif whole.exists():
        tensors = read_header(whole)
    else:
        raise InputError(_no_files(directory, whole.name, index.name))
    for tensor in tensors.values():
        if 0 in tensor.shape:
            raise InputError(
                f"{tensor.path}: {tensor.name} is empty (shape {list(tensor.shape)}): saved from "
                "ZeRO-3 shards that had not been gathered; save it again"
            )
    return tensors


def _no_files(directory: Path, whole: str, index: str) -> str:
    """The message for a directory without safetensors files."""
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    reason = "it is incomplete"
    if pickled:
        reason = (
            f"it has {pickled[0]}: save it once with save_pretrained of a transformers model, "
            "which writes safetensors"
        )
    return f"{directory}: neither {whole} nor {index}; {reason}"


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors that an index ({"weight_map": {name: file}}) names, from their files."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise InputError(f"{index}: expected a weight_map of tensor names to files")
    # Each shard's header is read once, however many tensors it has.
    shards = {file: read_header(index.parent / file) for file in sorted(set(file_of.values()))}
    tensors = {}
    for name, file in file_of.items():
        if name not in shards[file]:
            raise InputError(
                f"{index.parent / file}: lacks {name}, which {index.name} says is in it; copy or "
                "download the model again"
            )
        tensors[name] = shards[file][name]
    return tensors


def holds_another_head(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether there is a head whose values are not the embedding's. Such a model is not tied,
    whatever its config.json says."""
    embedding = next((tensors[name] for name in tensors if name.endswith(EMBEDDING)), None)
    head = tensors.get(HEAD)
    if embedding is None or head is None:
        return False
    return not _equal(embedding, head)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same dtype, shape and values."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(1, COMPARED_BYTES // max(1, one.row_bytes))
    for start in range(0, one.num_rows, step):
        stop = min(start + step, one.num_rows)
        if not one.rows(start, stop).equal(other.rows(start, stop)):
            return False
    return True
