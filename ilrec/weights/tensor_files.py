"""safetensors files read and written a block of rows at a time, without mapping them into memory.

The format: 8 bytes with the length of a JSON header, the header ({name: dtype, shape,
data_offsets}), the data (https://huggingface.co/docs/safetensors, "Format"). The safetensors
package maps whole files, which counts as memory under a limit; blocks that are read and written at
their offset do not, and several threads may do so at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
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
MERGEABLE = ("F64", "F32", "F16", "BF16")
# transformers' own default for save_pretrained until its version 5.
MAX_SHARD_BYTES = 5 * 10**9
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
COMPARED_BYTES = 4 * 2**20  # read at once of each of two tensors
MAX_HEADER_BYTES = 100 * 2**20  # the safetensors package refuses larger ones


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where its data begins, and what it is. dtype: safetensors' name of it."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_rows(self) -> int:
        """Along the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop (all), in the dtype they have: [stop - start, ...]."""
        stop = self.num_rows if stop is None else stop
        buffer = torch.empty((stop - start) * self.row_bytes, dtype=torch.uint8)
        view, position = memoryview(cast(Any, buffer.numpy())), self.offset + start * self.row_bytes
        with _opened(self.path) as descriptor:
            while len(view):
                count = os.preadv(descriptor, [view], position)
                if count == 0:
                    raise InputError(
                        f"{self.path}: ended within {self.name}; it was cut short while it was read"
                    )
                view, position = view[count:], position + count
        return buffer.view(DTYPES[self.dtype]).view(stop - start, *self.shape[1:])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise InputError(
            f"{path}: disappeared while it was read; a run that goes on removes its older checkpoints: copy this "
            "one first"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file. Raises InputError where it is no whole safetensors file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"its first 8 bytes promise a header of {length:,} bytes")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; the model directory is incomplete, copy or download it again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a safetensors file: {error}; copy or download it again"
        ) from None
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise InputError(
            f"{path}: has {size:,} bytes, its header says {end:,}: truncated or damaged; copy or download it again"
        )
    return tensors


def _stored(path: Path, name: str, entry: Mapping, begin: int) -> StoredTensor:
    """Raises ValueError where the header contradicts itself."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{name} has dtype {entry['dtype']}, which is none that models are merged in ({', '.join(DTYPES)})"
        )
    start, stop = entry["data_offsets"]
    tensor = StoredTensor(
        path, name, entry["dtype"], tuple(int(size) for size in entry["shape"]), begin + start
    )
    if tensor.num_bytes != stop - start or min(tensor.shape, default=1) < 0:
        raise ValueError(
            f"{name} of shape {list(tensor.shape)} does not fill its {stop - start:,} bytes"
        )
    return tensor


def read_tensors(directory: Path, stem: str = "model") -> dict[str, StoredTensor]:
    """All tensors of a model directory: {stem}.safetensors, or the shards that
    {stem}.safetensors.index.json names.

    Raises InputError where there are none, a shard lacks one that the index names, or one is empty.
    """
    index = directory / f"{stem}.safetensors.index.json"
    if index.exists():
        tensors = _sharded(index)
    elif (directory / f"{stem}.safetensors").exists():
        tensors = read_header(directory / f"{stem}.safetensors")
    else:
        other = next((path.name for path in sorted(directory.glob("*.bin"))), None)
        has = (
            f"it has {other}: save it once with save_pretrained of a transformers model, which writes safetensors"
            if other
            else "it is incomplete"
        )
        raise InputError(f"{directory}: neither {stem}.safetensors nor {index.name}; {has}")
    for tensor in tensors.values():
        if 0 in tensor.shape:
            raise InputError(
                f"{tensor.path}: {tensor.name} is empty (shape {list(tensor.shape)}): saved from ZeRO-3 shards that had "
                "not been gathered; save it again"
            )
    return tensors


def holds_another_head(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether there is a head whose values are not the embedding's: such a model is not tied,
    whatever its config.json says."""
    embedding, head = (
        next((tensors[name] for name in tensors if name.endswith(EMBEDDING)), None),
        tensors.get(HEAD),
    )
    return head is not None and embedding is not None and not _equal(embedding, head)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(1, COMPARED_BYTES // max(1, one.row_bytes))
    blocks = ((start, min(start + step, one.num_rows)) for start in range(0, one.num_rows, step))
    return all(one.rows(*block).equal(other.rows(*block)) for block in blocks)


def _sharded(index: Path) -> dict[str, StoredTensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: expected a weight_map of tensor names to files")
    shards = {file: read_header(index.parent / file) for file in sorted(set(places.values()))}
    for name, file in places.items():
        if name not in shards[file]:
            raise InputError(
                f"{index.parent / file}: lacks {name}, which {index.name} says is in it; copy or download the model again"
            )
    return {name: shards[file][name] for name, file in places.items()}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class TensorWriter:
    """A model's files, allocated whole at once (a full disk is noticed before the work) and filled
    in any order, by any thread."""

    def __init__(
        self, directory: Path, tensors: Iterable[NewTensor], max_shard_bytes: int | None = None
    ) -> None:
        """Raises OSError where there is no space for them."""
        self.directory = directory
        self.tensors: dict[str, StoredTensor] = {}
        shards = _shards(list(tensors), max_shard_bytes or MAX_SHARD_BYTES)
        for number, shard in enumerate(shards, 1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            self._allocate(directory / name, shard)
        self._descriptors = {
            path: os.open(path, os.O_WRONLY)
            for path in {tensor.path for tensor in self.tensors.values()}
        }

    def _allocate(self, path: Path, tensors: list[NewTensor]) -> None:
        entries, end = {}, 0
        for tensor in tensors:
            begin, end = end, end + tensor.num_bytes
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        header = json.dumps(
            {"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")
        ).encode()
        header += b" " * (-len(header) % 8)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, 8 + len(header) + end)
        self.tensors.update(read_header(path))

    def write_rows(self, name: str, start: int, rows: Tensor) -> None:
        """rows: in the tensor's dtype, from row `start` on."""
        tensor = self.tensors[name]
        view = memoryview(cast(Any, rows.contiguous().view(-1).view(torch.uint8).numpy()))
        position, descriptor = (
            tensor.offset + start * tensor.row_bytes,
            self._descriptors[tensor.path],
        )
        while len(view):
            count = os.pwrite(descriptor, view, position)
            view, position = view[count:], position + count

    def close(self) -> None:
        """Flush all to the disk, and write the index that makes several files one model."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
            os.close(descriptor)
        if len(self._descriptors) > 1:
            places = {name: tensor.path.name for name, tensor in self.tensors.items()}
            total = sum(tensor.num_bytes for tensor in self.tensors.values())
            write_text(
                self.directory / "model.safetensors.index.json",
                json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1)
                + "\n",
            )


def _shards(tensors: list[NewTensor], max_shard_bytes: int) -> list[list[NewTensor]]:
    """In their order; a tensor larger than a shard has its own. Within a shard the widest dtype
    first: data stays aligned."""
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if (
            shards[-1]
            and sum(each.num_bytes for each in shards[-1]) + tensor.num_bytes > max_shard_bytes
        ):
            shards.append([])
        shards[-1].append(tensor)
    return [sorted(shard, key=lambda tensor: -DTYPES[tensor.dtype].itemsize) for shard in shards]
