"""Base + adapter -> a plain Hugging Face model directory, streamed: written beside, flushed,
renamed.

The result is read by AutoModelForCausalLM and its tokenizer alone; the item index and data settings
come along, so that
ilrec/rank.py reads it too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ilrec import __version__
from ilrec.errors import InputError
from ilrec.files.digests import size_and_digest
from ilrec.files.outputs import check_new, write_text
from ilrec.files.reading import read_json
from ilrec.merging.adapter import CONFIG, Adapter, read_adapter
from ilrec.merging.model_files import (
    check_tokenizer,
    copy_files,
    merged_config,
    tokenizer_directory,
    write_generation_config,
)
from ilrec.merging.plan import MergedTensor, Plan, make_plan
from ilrec.merging.rows import RowMerger, blocks
from ilrec.merging.sources import MergeSource
from ilrec.model.portable import make_portable
from ilrec.weights.tensor_files import NAMES, TensorWriter, read_tensors

RECORD = "MERGE.json"
# Of a tensor that one thread writes at a time, in several blocks: enough that starting it costs
# nothing.
PORTION_BYTES = 64 * 2**20
# More gain nothing: the disk is the limit.
MAX_WORKERS = 8
SECONDS_BETWEEN_PROGRESS = 10  # in a job's log


@dataclass(frozen=True)
class MergeResult:
    output: Path
    num_parameters: int
    record: dict[str, Any]


def merge(
    source: MergeSource, output: Path, *, dtype: str | None = None, workers: int | None = None
) -> MergeResult:
    """dtype: a torch dtype's name to write; None: as the base has it. workers: threads; None: one
    per core, up to MAX_WORKERS.

    Raises InputError where base and adapter do not fit, a value is not finite, or `output` exists
    or cannot be written. Peak memory: torch, some blocks for each worker, and what single rows of
    the adapter need; no tensor is held whole.
    """
    check_new(output)
    config = read_json(source.base / "config.json")
    adapter = read_adapter(source.adapter, source.weights)
    plan = make_plan(
        read_tensors(source.base), config, adapter, NAMES[getattr(torch, dtype)] if dtype else None
    )
    check_tokenizer(plan, tokenizer_directory(source))
    check_space(plan, output)
    beside = output.with_name(output.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        hashes = write_tensors(
            plan, adapter, beside, workers or min(MAX_WORKERS, os.cpu_count() or 1)
        )
        record = make_record(source, plan, adapter, hashes)
        write_text(beside / RECORD, json.dumps(record, indent=1) + "\n")
        copy_files(source, beside)
        write_generation_config(source.base, beside)
        # Last: a directory without config.json is no model for anyone.
        write_text(
            beside / "config.json", json.dumps(merged_config(config, plan, dtype), indent=2) + "\n"
        )
        make_portable(beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if output.exists():
        output.rmdir()
    os.replace(beside, output)
    return MergeResult(output, sum(math.prod(tensor.new.shape) for tensor in plan.tensors), record)


def make_record(
    source: MergeSource, plan: Plan, adapter: Adapter, hashes: Mapping[Path, str]
) -> dict[str, Any]:
    """MERGE.json: what went in, by SHA-256, and what was done with it."""
    return {
        "base": {
            "directory": str(source.base),
            "files": {file.name: hashes[file] for file in input_files(plan)},
        },
        "adapter": {
            "directory": str(source.adapter),
            "made_for": adapter.base,
            "files": {file.name: hashes[file] for file in adapter_files(adapter)},
        },
        "tensors_by_scaling": scalings(plan),
        "dtypes": sorted({tensor.dtype for tensor in plan.tensors}),
        "tied": plan.is_tied,
        "vocab_size": plan.vocab_size,
        "versions": {"ilrec": __version__, "torch": torch.__version__},
    }


def write_tensors(plan: Plan, adapter: Adapter, directory: Path, workers: int) -> dict[Path, str]:
    """All tensors into safetensors files. Returns {file read: SHA-256}."""
    writer = TensorWriter(directory, [tensor.new for tensor in plan.tensors])
    hashes: dict[Path, str] = {}

    def write(tensor: MergedTensor, start: int, stop: int) -> int:
        merger = RowMerger(tensor)
        for begin, end in blocks(tensor, start, stop):
            writer.write_rows(tensor.name, begin, merger.rows(begin, end))
        return (stop - start) * writer.tensors[tensor.name].row_bytes

    def digest(file: Path) -> int:
        size, hashes[file] = size_and_digest(file)
        return size

    files = [*input_files(plan), *adapter_files(adapter)]
    jobs: list[tuple[Callable[..., int], tuple]] = [
        (write, portion) for tensor in plan.tensors for portion in portions(tensor)
    ]
    jobs += [(digest, (file,)) for file in files]
    total = sum(tensor.num_bytes for tensor in writer.tensors.values()) + sum(
        file.stat().st_size for file in files
    )
    run_jobs(jobs, total, workers)
    writer.close()
    return hashes


def run_jobs(jobs: list[tuple[Callable[..., int], tuple]], total_bytes: int, workers: int) -> None:
    """Each returns how many bytes it did. The first error ends all, once the jobs under way have
    ended."""
    seconds = 0.2 if sys.stderr.isatty() else SECONDS_BETWEEN_PROGRESS
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are the threads
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(
                total=total_bytes,
                unit="B",
                unit_scale=True,
                desc="merge and hash",
                mininterval=seconds,
            ) as progress,
        ):
            try:
                for done in as_completed([pool.submit(job, *arguments) for job, arguments in jobs]):
                    progress.update(done.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(num_threads)


def portions(tensor: MergedTensor) -> Iterator[tuple[MergedTensor, int, int]]:
    step = max(1, PORTION_BYTES // max(1, tensor.base.row_bytes))
    return (
        (tensor, start, min(start + step, tensor.num_rows))
        for start in range(0, tensor.num_rows, step)
    )


def input_files(plan: Plan) -> list[Path]:
    return sorted({tensor.base.path for tensor in plan.tensors})


def adapter_files(adapter: Adapter) -> list[Path]:
    return [
        adapter.directory / CONFIG,
        *sorted({tensor.path for tensor in adapter.tensors.values()}),
    ]


def scalings(plan: Plan) -> dict[str, int]:
    """{scaling: number of tensors}"""
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        if tensor.change.low_rank:
            key = f"{tensor.change.low_rank.scaling:.6g}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def check_space(plan: Plan, output: Path) -> None:
    needed = sum(tensor.new.num_bytes for tensor in plan.tensors)
    parent = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"--output: {parent} has {free / 1e9:.1f} GB free, the merged model takes {needed / 1e9:.1f}; free some "
            "space, or name a directory on another disk"
        )
