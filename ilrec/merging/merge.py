"""Merges base and adapter into a plain Hugging Face model directory.

AutoModelForCausalLM and AutoTokenizer read the result without ilrec. The item index and the data
settings are copied along, so that ilrec/rank.py reads it, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ilrec import __version__
from ilrec.errors import InputError
from ilrec.files.outputs import check_new, write_text
from ilrec.files.reading import read_json
from ilrec.merging.adapter import Adapter, read_adapter
from ilrec.merging.model_files import (
    check_tokenizer,
    copy_files,
    merged_config,
    tokenizer_directory,
    write_generation_config,
)
from ilrec.merging.plan import MergePlan, plan_merge
from ilrec.merging.sources import MergeSource
from ilrec.merging.writing import MAX_WORKERS, adapter_files, input_files, write_tensors
from ilrec.model.portable import make_portable
from ilrec.training.model_card import CARD, derived_card, place_name
from ilrec.weights.tensor_files import NAMES, read_tensors

RECORD = "MERGE.json"


@dataclass(frozen=True)
class MergeResult:
    """record: the content of MERGE.json."""

    output: Path
    num_parameters: int
    record: dict[str, Any]


def merge(
    source: MergeSource, output: Path, *, dtype: str | None = None, workers: int | None = None
) -> MergeResult:
    """Writes the merged model to `output`, whole or not at all.

    dtype: name of the torch dtype to write ("bfloat16"); None keeps that of each of the base's
    tensors. workers: number of threads; None is one per core, up to MAX_WORKERS.

    Raises InputError if base and adapter do not fit, a value is not finite, or `output` exists or
    cannot be written. Peak memory: torch itself, some blocks for each worker, and what single token
    rows of the adapter need. No tensor of the base is held whole.
    """
    # Headers and JSON decide all that can be wrong, so that a mistake costs seconds, not an hour.
    check_new(output)
    config = read_json(source.base / "config.json")
    adapter = read_adapter(source.adapter, source.weights)
    stored_dtype = NAMES[getattr(torch, dtype)] if dtype else None
    plan = plan_merge(read_tensors(source.base), config, adapter, stored_dtype)
    check_tokenizer(plan, tokenizer_directory(source))
    check_space(plan, output)

    # The tensors come first: nearly all the time and space goes into them.
    workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
    with renamed_when_whole(output) as beside:
        hashes = write_tensors(plan, adapter, beside, workers)
        record = make_record(source, plan, adapter, hashes)
        write_json(beside / RECORD, record, indent=1)
        copy_files(source, beside)
        write_generation_config(source.base, beside)
        write_text(beside / CARD, card_of_merge(adapter, output))
        # config.json comes last: without it a directory is not taken for a model by any program.
        write_json(beside / "config.json", merged_config(config, plan, dtype), indent=2)
        make_portable(beside)

    num_parameters = sum(math.prod(tensor.new.shape) for tensor in plan.tensors)
    return MergeResult(output, num_parameters, record)


@contextlib.contextmanager
def renamed_when_whole(output: Path) -> Iterator[Path]:
    """An empty directory OUTPUT.tmp. It becomes `output` if the block ends well, and is removed if
    not. One that an earlier merge left when it was killed is removed first."""
    beside = output.with_name(output.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if output.exists():  # an empty directory, or check_new would have refused it
        output.rmdir()
    os.replace(beside, output)


def make_record(
    source: MergeSource, plan: MergePlan, adapter: Adapter, hashes: Mapping[Path, str]
) -> dict[str, Any]:
    """The content of MERGE.json: the SHA-256 of the files that went in, and what was done."""
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
        "tensors_by_scaling": count_scalings(plan),
        "dtypes": sorted({tensor.dtype for tensor in plan.tensors}),
        "tied": plan.is_tied,
        "vocab_size": plan.vocab_size,
        "versions": {"ilrec": __version__, "torch": torch.__version__},
    }


def card_of_merge(adapter: Adapter, output: Path) -> str:
    """The adapter's model card, continued for the merged model."""
    base = adapter.config.get("base_model_name_or_path") or ""
    event = f"The adapter {place_name(str(adapter.directory))} merged into its base."
    return derived_card(adapter.directory, output.name, event, base)


def count_scalings(plan: MergePlan) -> dict[str, int]:
    """{scaling: number of tensors with a low-rank update that is scaled by it}"""
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        if tensor.change.low_rank:
            key = f"{tensor.change.low_rank.scaling:.6g}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def write_json(path: Path, content: Mapping[str, Any], indent: int) -> None:
    write_text(path, json.dumps(content, indent=indent) + "\n")


def check_space(plan: MergePlan, output: Path) -> None:
    """Raises InputError if the disk has less space than the merged model takes."""
    # The output directory may not be there yet: the disk is that of the nearest directory above.
    needed = sum(tensor.new.num_bytes for tensor in plan.tensors)
    parent = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"--output: {parent} has {free / 1e9:.1f} GB free, the merged model takes "
            f"{needed / 1e9:.1f}; free some space, or name a directory on another disk"
        )
