"""manifest.json: what a checkpoint or final/ records about itself.

It holds each file's size and SHA-256 (without the model card's), the step, the number of ranks, the
run's identity (identity.py) and the base model's weights (recorded_base.py). A directory without a
manifest is incomplete; one whose files do not fit it is damaged; one with another identity belongs
to another run. None of these is resumed from.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.digests import size_and_digest
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.processes import rank, world_size
from ilrec.training.model_card import CARD
from ilrec.training.together import agreed, shared_work

# It is the last file that is written. A directory that has it was written completely.
MANIFEST = "manifest.json"
# The two ways out for a user whose run directory holds another run.
FOR_A_NEW_RUN = (
    "for a new run give another --output_dir, or --resume never, which moves the earlier run to "
    "OUTPUT_DIR/earlier-N"
)
logger = logging.getLogger(__name__)


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Put all files of `directory` on the disk and describe them. Every rank calls it.

    facts: what the manifest holds beside the files: {"step", "identity", "base"}.
    """
    # A ranking fills in the card's results, and a user may edit the card. It decides nothing.
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != CARD)
    names = sorted(str(path.relative_to(directory)) for path in files)
    # Hashing reads every byte again, and checkpoints are large. So each rank hashes a share.
    entries = shared_work(names, lambda name: _flushed_entry(directory / name))
    if rank() == 0:
        content = {**facts, "world_size": world_size(), "files": entries}
        write_text(directory / MANIFEST, json.dumps(content, indent=1) + "\n")
        # A file's bytes are of no use after a power failure if the name of the file is lost.
        for folder in {(directory / name).parent for name in names} | {directory}:
            flush_folder(folder)


def read_recorded(directory: Path, name: str) -> Any:
    """What the manifest records under a name, None if it does not."""
    return read_json(directory / MANIFEST).get(name)


def ranks_of(checkpoint: str | Path) -> int:
    """The number of ranks that wrote it."""
    return int(read_recorded(Path(checkpoint), "world_size"))


def find_fault(checkpoint: Path) -> str:
    """Why this is no complete checkpoint, or an empty text.

    Every rank calls it, reads its share of the files, and gets the same answer.
    """
    # All ranks take rank 0's list of files, because they are going to divide it.
    fault, expected = agreed(lambda: _read_files(checkpoint))
    if fault:
        return fault
    faults = shared_work(
        sorted(expected), lambda name: _file_fault(checkpoint / name, *expected[name])
    )
    for name, file_fault in faults.items():
        if file_fault:
            return f"is damaged: {name} {file_fault}"
    return ""


def require_same_run(directory: Path, identity: Mapping[str, Any], is_named: bool) -> None:
    """Raises InputError if another run wrote `directory`: the result of going on would belong to
    neither run.

    identity: of this run. is_named: the user has named this checkpoint. An older version may not
    have recorded everything. Such a checkpoint is refused, unless it is named: then the user takes
    the responsibility.
    """
    if _read_files(directory)[0]:
        return  # The caller skips or refuses it for that fault.
    recorded = read_recorded(directory, "identity") or {}
    unknown = sorted(identity.keys() - recorded.keys())
    if unknown and is_named:
        logger.warning(
            "%s does not record %s; it is taken because it was named", directory, ", ".join(unknown)
        )

    differences = []
    for name, before in recorded.items():
        now = identity.get(name)
        if _content(before) != _content(now):
            differences.append(f"{name}: {_shown(before)} there, {_shown(now)} now")
    if differences:
        raise InputError(
            f"{directory} was trained with other settings than these: {'; '.join(differences)}. "
            f"Put back what it was to go on; {FOR_A_NEW_RUN}"
        )

    if unknown and not is_named:
        names = ", ".join(unknown) if recorded else "what it was trained with"
        raise InputError(
            f"{directory} does not record {names}: an older version wrote it. If you know that "
            f"nothing has changed, name it to go on: --resume CHECKPOINT; {FOR_A_NEW_RUN}"
        )


def flush_folder(folder: Path) -> None:
    """Put a folder's names on the disk. Without it a rename may be lost when the power fails."""
    _flush(folder)


def _read_files(checkpoint: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """(what is wrong with the manifest or an empty text, {file: (size, SHA-256)})"""
    if not (checkpoint / MANIFEST).exists():
        return f"is incomplete: no {MANIFEST} in it", {}
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
        return "", {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return f"is damaged: its {MANIFEST} cannot be read", {}


def _file_fault(path: Path, size: int, digest: str) -> str:
    if not path.is_file():
        return "is missing"
    # The size costs nothing to compare. Most damaged files are cut short.
    found = path.stat().st_size
    if found != size:
        return f"has {found:,} bytes, expected {size:,}"
    if size_and_digest(path)[1] != digest:
        return f"does not fit the SHA-256 in {MANIFEST}"
    return ""


def _flushed_entry(path: Path) -> dict[str, Any]:
    size, digest = size_and_digest(path)
    _flush(path)
    return {"size": size, "sha256": digest}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(value: Any) -> Any:
    """A file or directory counts by what it holds, not by where it lies."""
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _shown(value: Any) -> str:
    """One side of a difference, for a message."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['path']} (sha256 {value['sha256'][:12]}...)"
    return "none" if value is None else str(value)
