"""Checkpoints, and final/, that are complete or not there: written beside, flushed, described by a manifest, renamed into place.

A checkpoint is OUTPUT_DIR/checkpoint-N with a manifest: its files with sizes and SHA-256, the step, the number of ranks, and what the
run was trained on. One that the run did not finish lies under OUTPUT_DIR/.saving and never has that name; one that was damaged
later does not fit its manifest. Neither is resumed from. Ranks share the output directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ilrec.config import read_json, write_text
from ilrec.errors import InputError
from ilrec.portable import make_portable

MANIFEST = "manifest.json"
STAGING = ".saving"
LOCK = ".lock"
# What writers say beside ENOSPC where a disk is full: torch's zip writer and safetensors keep the errno to themselves.
WRITE_FAILED = ("file write failed", "unexpected pos", "No space left on device", "Disk quota exceeded")
BLOCK_BYTES = 2**22
logger = logging.getLogger(__name__)


class RunLock:
    """One run at a time in an output directory: rank 0 holds the lock until its process ends, however it ends."""

    def __init__(self, output_dir: str | Path) -> None:
        """Raises InputError, naming the holder, where another process has it."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(output_dir) / LOCK
        self._file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            raise InputError(f"{output_dir}: another run is at work in it ({self._file.read().strip() or 'it has not said which'}); "
                             "wait for it, end it, or give another output_dir") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self._file.flush()


def staging(output_dir: str | Path) -> Path:
    return Path(output_dir) / STAGING


def forget_unfinished(output_dir: str | Path) -> None:
    """Rank 0, before training: what a run that ended while it saved has left."""
    if staging(output_dir).exists():
        logger.warning("%s: a checkpoint that was not finished is removed", staging(output_dir))
        shutil.rmtree(staging(output_dir), ignore_errors=True)


def publish(output_dir: str | Path, name: str, facts: Mapping[str, Any]) -> None:
    """Called by every rank once it has written its part of `.saving/NAME`: make it readable for older servers,
    flush, describe, rename to OUTPUT_DIR/NAME.

    facts: what the manifest holds beside the files.
    """
    directory = staging(output_dir) / name
    _barrier()
    if _rank() == 0:
        make_portable(directory)
    _barrier()
    files = _shared_work(_relative_files(directory), lambda file: _flushed_digest(directory / file))
    if _rank() == 0:
        content = {**facts, "world_size": _world_size(), "files": files}
        write_text(directory / MANIFEST, json.dumps(content, indent=1) + "\n")
        for folder in {(directory / file).parent for file in files} | {directory}:
            _flush_folder(folder)
        _replace(directory, Path(output_dir) / name)
        _flush_folder(Path(output_dir))
    _barrier()


def find_checkpoint(output_dir: str | Path, resume: str, facts: Mapping[str, Any]) -> str | None:
    """The checkpoint to resume from, or None to start fresh. `resume`: auto, never, or a checkpoint directory.

    Every rank calls it; they read the files together, each its share, and agree. auto skips incomplete and damaged ones with a
    warning that says why; a named one must be complete. facts: what this run trains on; a checkpoint of something else is refused.
    Raises InputError.
    """
    if resume == "never":
        return None
    for checkpoint in _agreed(lambda: _candidates(output_dir, resume)):
        fault = find_fault(checkpoint)
        if not fault:
            _require_same(checkpoint, facts)
            return str(checkpoint)
        if resume != "auto":
            raise InputError(f"resume: {checkpoint} {fault}; use an earlier checkpoint-N, or --resume auto to take the newest complete "
                             "one")
        if _rank() == 0:
            logger.warning("%s %s; skipped", checkpoint, fault)
    return None


def find_fault(checkpoint: Path) -> str:
    """Why this is no complete checkpoint, or "". Every rank reads its share of the files; all get the same answer."""
    fault, expected = _agreed(lambda: _read_manifest(checkpoint))
    faults = _shared_work(sorted(expected), lambda file: _file_fault(checkpoint / file, *expected[file]))
    return fault or next((f"is damaged: {file} {fault}" for file, fault in faults.items() if fault), "")


def ranks_of(checkpoint: str | Path) -> int:
    """How many ranks wrote it."""
    return int(read_json(Path(checkpoint) / MANIFEST)["world_size"])


def remove_old(output_dir: str | Path, limit: int) -> None:
    """Rank 0: all but the newest `limit` checkpoints with a manifest, and those without one; the newest stays whatever the limit."""
    complete = [path for path in _checkpoints(Path(output_dir)) if (path / MANIFEST).exists()]
    if limit <= 0 or not complete:
        return
    kept = set(complete[:max(limit, 1)])
    for path in _checkpoints(Path(output_dir)):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def full_disk_is_said(output_dir: str | Path) -> Iterator[None]:
    """A checkpoint that finds no space is one message; what there is of it lies under .saving until the next start."""
    try:
        yield
    except (OSError, RuntimeError, InputError) as error:  # outputs.whole_file says an OSError as an InputError
        if not _is_full_disk(error):
            raise
        left = [path.name for path in _checkpoints(Path(output_dir)) if (path / MANIFEST).exists()]
        kept = f"{left[0]} is intact" if left else "there is no earlier one"
        raise InputError(f"{output_dir}: no space left on the disk (or over quota) while a checkpoint was written; {kept}. Free some "
                         f"space ({STAGING} in it may be deleted) or lower save_total_limit, and give the same command again") from None


def _replace(directory: Path, target: Path) -> None:
    """Rename over an older one of the same name, which is there until then."""
    if target.exists():
        older = directory.with_name(f"older-{target.name}")
        os.replace(target, older)
        os.replace(directory, target)
        shutil.rmtree(older, ignore_errors=True)
    else:
        os.replace(directory, target)


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in WRITE_FAILED):
            return True
        error = error.__cause__ or error.__context__
    return False


def _candidates(output_dir: str | Path, resume: str) -> list[Path]:
    if resume == "auto":
        return _checkpoints(Path(output_dir))
    if not Path(resume).is_dir():
        raise InputError(f"resume: no such checkpoint: {resume}; give a checkpoint-N directory, auto or never")
    return [Path(resume)]


def _read_manifest(checkpoint: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """(what is wrong with it, {file: (size, SHA-256)})"""
    if not (checkpoint / MANIFEST).exists():
        return f"is incomplete: no {MANIFEST} in it", {}
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
        return "", {file: (entry["size"], entry["sha256"]) for file, entry in files.items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return f"is damaged: its {MANIFEST} cannot be read", {}


def _require_same(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """What decides the order of the samples must be what it was: a run that went on with other data would be neither's."""
    recorded = read_json(checkpoint / MANIFEST)
    for name, value in facts.items():
        if name in recorded and recorded[name] != value:
            raise InputError(f"{checkpoint}: was trained with {name} {_short(recorded[name])}, now it is {_short(value)}. Put back "
                             "what it was to go on, or start anew with --resume never or another output_dir")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _checkpoints(output_dir: Path) -> list[Path]:
    """Newest first, by number."""
    found = [(int(match.group(1)), path) for path in output_dir.glob("checkpoint-*")
             if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _relative_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _flushed_digest(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, and its bytes on the disk."""
    size, digest = size_and_digest(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": size, "sha256": digest}


def _file_fault(path: Path, size: int, digest: str) -> str:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, expected {size:,}"
    return "" if size_and_digest(path)[1] == digest else f"does not fit the SHA-256 in {MANIFEST}"


def size_and_digest(path: Path) -> tuple[int, str]:
    """Bytes, and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _agreed(read: Callable[[], Any]) -> Any:
    """read() of rank 0, on every rank: where a directory is not shared, ranks must not go different ways."""
    if not dist.is_initialized():
        return read()
    answer = [read() if _rank() == 0 else None]
    dist.broadcast_object_list(answer)
    return answer[0]


def _shared_work(files: list[str], work: Callable[[str], Any]) -> dict[str, Any]:
    """{file: work(file)} of all files, on every rank; each did every `world_size`-th."""
    mine = {file: work(file) for file in files[_rank()::_world_size()]}
    if not dist.is_initialized():
        return mine
    shares: list[dict[str, Any]] = [{}] * _world_size()
    dist.all_gather_object(shares, mine)
    merged = {file: value for share in shares for file, value in share.items()}
    return {file: merged[file] for file in files}
