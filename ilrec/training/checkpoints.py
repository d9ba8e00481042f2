"""Checkpoints and final/ that are complete or not there.

A checkpoint is OUTPUT_DIR/checkpoint-N. It is written under OUTPUT_DIR/.saving, flushed, described
by a manifest (manifest.py), and only then renamed into place. So one that a run did not finish
never has the name of a checkpoint, and one that was damaged later does not fit its manifest. All
ranks share the output directory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.model.portable import make_portable
from ilrec.processes import rank
from ilrec.training.manifest import (
    MANIFEST,
    find_fault,
    flush_folder,
    require_same_run,
    write_manifest,
)
from ilrec.training.together import agreed, barrier

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
FINAL = "final"
STAGING = ".saving"
# Messages of writers on a full disk. torch's zip writer and safetensors do not pass on the errno.
WRITE_FAILED = (
    "file write failed",
    "unexpected pos",
    "No space left on device",
    "Disk quota exceeded",
)
logger = logging.getLogger(__name__)


def staging(output_dir: str | Path) -> Path:
    """The folder in which checkpoints are written before they get their place."""
    return Path(output_dir) / STAGING


def publish(output_dir: str | Path, name: str, facts: Mapping[str, Any]) -> None:
    """Give OUTPUT_DIR/.saving/NAME, when all ranks have written it, its place OUTPUT_DIR/NAME.

    Every rank calls it. facts: what the manifest holds beside the files: {"step", "identity",
    "base"}.
    """
    directory = staging(output_dir) / name

    # Rank 0 changes files that other ranks may still be writing, and they hash what it has changed.
    barrier()
    if rank() == 0:
        make_portable(directory)
    barrier()

    write_manifest(directory, facts)
    if rank() == 0:
        _replace(directory, Path(output_dir) / name)
        with contextlib.suppress(OSError):  # Another checkpoint may still lie in it.
            staging(output_dir).rmdir()
        flush_folder(Path(output_dir))
    # No rank goes on, and perhaps reads it, before it is there.
    barrier()


def find_checkpoint(output_dir: str | Path, resume: str, identity: Mapping[str, Any]) -> str | None:
    """The checkpoint to resume from, or None for a fresh start.

    resume: auto, never, or a checkpoint's directory. With auto, incomplete and damaged checkpoints
        are skipped with a warning that tells why. A named checkpoint must be complete.
    identity: of this run. Another run's checkpoint is refused before its files are read; with auto,
        so is another run's final/.

    Every rank calls it; they share the reading and agree on the answer. Raises InputError.
    """
    if resume == "never":
        return None
    # Newest first, and each is read whole: the first one without a fault is the answer.
    for checkpoint in agreed(lambda: _candidates(Path(output_dir), resume, identity)):
        fault = find_fault(checkpoint)
        if not fault:
            return str(checkpoint)
        if resume != "auto":
            raise InputError(
                f"resume: {checkpoint} {fault}; use an earlier checkpoint-N, or --resume auto to "
                "take the newest complete one"
            )
        if rank() == 0:
            logger.warning("%s %s; skipped", checkpoint, fault)
    return None


def _candidates(output_dir: Path, resume: str, identity: Mapping[str, Any]) -> list[Path]:
    """The checkpoints that may be resumed from, newest first.

    Raises InputError if one of them belongs to another run.
    """
    if resume == "auto":
        found = list_checkpoints(output_dir)
        for directory in (*found, output_dir / FINAL):
            require_same_run(directory, identity, is_named=False)
        return found
    if not Path(resume).is_dir():
        raise InputError(
            f"resume: no such checkpoint: {resume}; give a checkpoint-N directory, auto or never"
        )
    require_same_run(Path(resume), identity, is_named=True)
    return [Path(resume)]


def list_checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoint-N in a run directory, complete or not. The newest (largest number) first."""
    found = output_dir.glob("checkpoint-*")
    numbered = [path for path in found if re.fullmatch(CHECKPOINT, path.name)]
    return sorted(numbered, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The number in its name. 0 if there is none, because somebody copied it to another name."""
    match = re.fullmatch(CHECKPOINT, checkpoint.name)
    return int(match.group(1)) if match else 0


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove what is left of a checkpoint if an earlier run ended while it saved.

    Rank 0 calls it before training.
    """
    place = staging(output_dir)
    if not place.exists():
        return
    if any(place.iterdir()):
        logger.warning("%s: a checkpoint that was not finished is removed", place)
    shutil.rmtree(place, ignore_errors=True)


def checkpoint_at(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir) / f"checkpoint-{step}"


def remove_old(output_dir: str | Path, limit: int, best: Path | None = None) -> None:
    """Remove all checkpoints but `best` and the newest `limit` that have a manifest; 0: keep all.

    At least one with a manifest stays. Rank 0 calls it after saving.
    """
    every = list_checkpoints(Path(output_dir))
    complete = [path for path in every if (path / MANIFEST).exists()]
    if limit <= 0 or not complete:
        return
    kept = complete[:limit]
    for path in every:
        if path not in kept and path != best:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def full_disk_reported(output_dir: str | Path) -> Iterator[None]:
    """Inside, a full disk while a checkpoint is written becomes one clear InputError.

    What was written so far stays under .saving until the next start. The writers of torch and
    safetensors do not tell the cause. So the message also shows their own words and the free space.
    """
    try:
        yield
    except (OSError, RuntimeError, InputError) as error:
        # outputs.whole_file turns an OSError into an InputError, hence that class, too.
        if not _is_full_disk(error):
            raise
        complete = [
            path.name for path in list_checkpoints(Path(output_dir)) if (path / MANIFEST).exists()
        ]
        kept = f"{complete[0]} is intact" if complete else "there is no earlier one"
        free_mb = shutil.disk_usage(output_dir).free / 1e6
        raise InputError(
            f"{output_dir}: no space left on the disk (or over quota) while a checkpoint was "
            f"written, as far as can be told ({_last_line(error)}; {free_mb:,.1f} MB free); "
            f"{kept}. Free some space ({STAGING} in it may be deleted) or lower save_total_limit, "
            "and give the same command again"
        ) from None


def _replace(directory: Path, target: Path) -> None:
    """Rename `directory` to `target`. An older one of that name stays until then."""
    if not target.exists():
        os.replace(directory, target)
        return
    # A directory that is not empty cannot be renamed over.
    older = directory.with_name(f"older-{target.name}")
    os.replace(target, older)
    os.replace(directory, target)
    shutil.rmtree(older, ignore_errors=True)


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, tells of a full disk."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in WRITE_FAILED):
            return True
        error = error.__cause__ or error.__context__
    return False


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
