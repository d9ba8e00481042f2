"""Finds what is merged: a run's final/, a checkpoint of it, or an adapter that peft wrote; and the
base that it belongs to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.merging.adapter_settings import CONFIG
from ilrec.model.source import find_base, local_directory, refuse_pointers
from ilrec.training.manifest import MANIFEST, find_fault
from ilrec.training.recorded_base import check_base
from ilrec.weights.tensor_files import read_header

WEIGHTS = "adapter_model.safetensors"
# DeepSpeed's file that names the folder with its shards.
SHARDS = "latest"


@dataclass(frozen=True)
class MergeSource:
    """Directories of the base and of the adapter. weights: the directory of the adapter's tensors,
    which is another one than `adapter` if they had to be consolidated from shards."""

    base: Path
    adapter: Path
    weights: Path


@contextlib.contextmanager
def open_source(adapter: str, base: str = "") -> Iterator[MergeSource]:
    """What to merge, for the block's duration. base: "" takes the place that the adapter records.

    Raises InputError if something is missing or damaged, or if the base is not the one that the
    adapter was trained on.
    """
    # Which base: the recorded one or --base, downloaded if it is a hub name. A run also recorded a
    # fingerprint of its weights, because another model of the same shape would merge as well.
    directory = find_adapter(adapter)
    base_directory = local_directory(find_base(directory / CONFIG, base))
    check_base(directory, base_directory)
    if has_weights(directory):
        yield MergeSource(base_directory, directory, weights=directory)
        return
    # The checkpoint stays as it is: its adapter is put together in a folder that goes at the end.
    with tempfile.TemporaryDirectory(prefix="ilrec-consolidated-") as consolidated:
        consolidate(directory, Path(consolidated))
        yield MergeSource(base_directory, directory, weights=Path(consolidated))


def find_adapter(name: str) -> Path:
    """The directory `name`. Raises InputError if it is not an adapter, or is not as its manifest
    says."""
    directory = Path(name)
    if not directory.is_dir():
        raise InputError(
            f"--adapter: no such directory: {name}; expected final/ or checkpoint-N of a run, or a "
            "peft adapter"
        )
    if not (directory / CONFIG).exists():
        raise InputError(f"--adapter: {_no_adapter(directory)}")
    refuse_pointers(directory)
    # Of an adapter that peft wrote there is no manifest to compare with.
    fault = find_fault(directory) if (directory / MANIFEST).exists() else ""
    if fault:
        raise InputError(
            f"--adapter: {directory} {fault}; take another checkpoint, or copy it again"
        )
    return directory


def _no_adapter(directory: Path) -> str:
    """The message for a directory without adapter_config.json."""
    if (directory / "config.json").exists():
        return (
            f"{directory} is a full model, there is nothing to merge; expected a directory with "
            f"{CONFIG}"
        )
    # Often the run's directory is named in place of its final/.
    for path in (directory / "final", *directory.glob("checkpoint-*")):
        if (path / CONFIG).exists():
            return f"{directory} has no {CONFIG}; did you mean {path}?"
    return f"{directory} has no {CONFIG}; expected final/ or checkpoint-N of a LoRA run"


def has_weights(directory: Path) -> bool:
    """True if the adapter's tensors are in WEIGHTS; False if they have to be consolidated.

    A ZeRO-3 run that was told not to gather its weights saves WEIGHTS without any tensor, and
    DeepSpeed's shards beside it. Raises InputError if there are neither tensors nor shards.
    """
    weights = directory / WEIGHTS
    has_shards = (directory / SHARDS).exists()
    if weights.exists() and (read_header(weights) or not has_shards):
        return True
    if not has_shards:
        raise InputError(
            f"{directory}: incomplete: neither {WEIGHTS} nor DeepSpeed's shards; use another "
            "checkpoint, or the final/ of a finished run"
        )
    return False


def consolidate(checkpoint: Path, target: Path) -> None:
    """Writes WEIGHTS in `target` from the shards of a ZeRO checkpoint.

    Every rank of the run saved its part of the trained parameters in float32, beside its part of
    the optimizer's state. DeepSpeed puts the parts together, whatever the number of ranks. All of
    it is in memory, which is fine: only the adapter's parameters were trained.
    """
    # DeepSpeed takes seconds to import, and most merges do without it.
    from ilrec.training.zero3 import consolidated_adapter

    save_file(consolidated_adapter(checkpoint), target / WEIGHTS)
