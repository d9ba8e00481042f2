"""What is merged: a run's final/, a checkpoint of it, or an adapter that peft wrote; and the base
it belongs to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.merging.adapter import CONFIG
from ilrec.model.source import find_base, local_directory, refuse_pointers
from ilrec.training.manifest import MANIFEST, find_fault
from ilrec.training.recorded_base import check_base
from ilrec.weights.tensor_files import read_header

WEIGHTS = "adapter_model.safetensors"
SHARDS = "latest"  # DeepSpeed's file that names the folder with its shards


@dataclass(frozen=True)
class MergeSource:
    """base, adapter: directories. weights: where the adapter's tensors are, which is elsewhere
    where they had to be consolidated."""

    base: Path
    adapter: Path
    weights: Path


@contextlib.contextmanager
def open_source(adapter: str, base: str = "") -> Iterator[MergeSource]:
    """`base` overrides the recorded place. Raises InputError where something is missing, damaged,
    or the base another one."""
    directory = find_adapter(adapter)
    source = local_directory(find_base(directory / CONFIG, base))
    check_base(directory, source)
    with contextlib.ExitStack() as stack:
        weights = directory
        if not has_weights(directory):
            weights = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="ilrec-consolidated-"))
            )
            consolidate(directory, weights)
        yield MergeSource(source, directory, weights)


def find_adapter(name: str) -> Path:
    """Raises InputError for what is no adapter, or one that does not fit its manifest."""
    directory = Path(name)
    if not directory.is_dir():
        raise InputError(
            f"--adapter: no such directory: {name}; expected final/ or checkpoint-N of a run, or a peft adapter"
        )
    if not (directory / CONFIG).exists():
        if (directory / "config.json").exists():
            raise InputError(
                f"--adapter: {directory} is a full model, there is nothing to merge; expected a directory with {CONFIG}"
            )
        inside = [
            path
            for path in (directory / "final", *directory.glob("checkpoint-*"))
            if (path / CONFIG).exists()
        ]
        hint = (
            f"did you mean {inside[0]}?"
            if inside
            else "expected final/ or checkpoint-N of a LoRA run"
        )
        raise InputError(f"--adapter: {directory} has no {CONFIG}; {hint}")
    refuse_pointers(directory)
    fault = find_fault(directory) if (directory / MANIFEST).exists() else ""
    if fault:
        raise InputError(
            f"--adapter: {directory} {fault}; take another checkpoint, or copy it again"
        )
    return directory


def has_weights(directory: Path) -> bool:
    """Whether the adapter was gathered and saved; otherwise there are DeepSpeed's shards, or
    InputError."""
    path = directory / WEIGHTS
    if path.exists() and (read_header(path) or not (directory / SHARDS).exists()):
        return True
    if not (directory / SHARDS).exists():
        raise InputError(
            f"{directory}: incomplete: neither {WEIGHTS} nor DeepSpeed's shards; use another checkpoint, or the final/ of "
            "a finished run"
        )
    return False


def consolidate(checkpoint: Path, target: Path) -> None:
    """adapter_model.safetensors in `target` from the shards of a ZeRO checkpoint, of any number of
    ranks."""
    from ilrec.training.zero3 import consolidated_adapter

    save_file(consolidated_adapter(checkpoint), target / WEIGHTS)
