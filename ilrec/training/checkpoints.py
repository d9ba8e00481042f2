"""Checkpoints, and final/, that are complete or not there: written beside, flushed, described by a
manifest, renamed into place.

A checkpoint is OUTPUT_DIR/checkpoint-N with a manifest: its files with sizes and SHA-256, the step,
the number of ranks, and the run's identity (ilrec/training/identity.py). One that the run did not
finish lies under
OUTPUT_DIR/.saving and never has that name; one that was damaged
later does not fit its manifest. Neither is resumed from. Ranks share the output directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.digests import size_and_digest
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.model.portable import make_portable
from ilrec.training.together import agreed, barrier, rank, shared_work, world_size

MANIFEST = "manifest.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
FINAL = "final"
STAGING = ".saving"
# What an earlier run leaves in an output directory, beside its checkpoints.
OF_A_RUN = (
    FINAL,
    "base",
    "config.yaml",
    "ds_config.json",
    "environment.json",
    "item_index.json",
    "metrics.jsonl",
    "tensorboard",
    "nonfinite",
)
ANEW = (
    "for a new run give another --output_dir, or --resume never, which moves the earlier run to "
    "OUTPUT_DIR/earlier-N"
)
LOCK = ".lock"
# What writers say beside ENOSPC where a disk is full: torch's zip writer and safetensors keep the
# errno to themselves.
WRITE_FAILED = (
    "file write failed",
    "unexpected pos",
    "No space left on device",
    "Disk quota exceeded",
)
logger = logging.getLogger(__name__)


class RunLock:
    """One run at a time in an output directory: rank 0 holds the lock until its process ends,
    however it ends."""

    def __init__(self, output_dir: str | Path) -> None:
        """Raises InputError, naming the holder, where another process has it."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(output_dir) / LOCK
        self._file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            raise InputError(
                f"{output_dir}: another run is at work in it ({self._file.read().strip() or 'it has not said which'}); "
                "wait for it, end it, or give another output_dir"
            ) from None
        self._file.truncate(0)
        self._file.write(
            f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._file.flush()


def staging(output_dir: str | Path) -> Path:
    return Path(output_dir) / STAGING


def forget_unfinished(output_dir: str | Path) -> None:
    """Rank 0, before training: what a run that ended while it saved has left."""
    if staging(output_dir).exists():
        if any(staging(output_dir).iterdir()):
            logger.warning("%s: a checkpoint that was not finished is removed", staging(output_dir))
        shutil.rmtree(staging(output_dir), ignore_errors=True)


def set_aside(output_dir: str | Path, start: str | None, sources: Iterable[str]) -> None:
    """Move what an earlier run left, and this one does not go on from, to OUTPUT_DIR/earlier-N.

    Left there, checkpoints of an abandoned run would be gone on from, and would count as newer than
    those that are written now. Every rank calls it before training. start: the checkpoint that is
    gone on from,
    None: a fresh start. sources: what this run reads; InputError where it would be moved.
    """
    agreed(lambda: _move(Path(output_dir), _stale(Path(output_dir), start), sources))


def _stale(output_dir: Path, start: str | None) -> list[Path]:
    if start is not None and Path(start).resolve().parent == output_dir.resolve():
        return [path for path in _checkpoints(output_dir) if _step_of(path) > _step_of(Path(start))]
    stale = _checkpoints(output_dir)
    if stale or (output_dir / FINAL).exists():
        stale += [output_dir / name for name in OF_A_RUN if (output_dir / name).exists()]
    return stale


def _move(output_dir: Path, stale: list[Path], sources: Iterable[str]) -> None:
    for source in sources:
        if any(Path(source).resolve().is_relative_to(path.resolve()) for path in stale):
            raise InputError(
                f"model: {source} lies in {output_dir}, where this run would take its place; give "
                "another --output_dir"
            )
    if stale:
        earlier = next(
            place
            for number in itertools.count(1)
            if not (place := output_dir / f"earlier-{number}").exists()
        )
        earlier.mkdir()
        for path in stale:
            os.replace(path, earlier / path.name)
        logger.warning(
            "%s of an earlier run moved to %s; remove it when it is not needed",
            ", ".join(path.name for path in stale),
            earlier,
        )


def publish(output_dir: str | Path, name: str, facts: Mapping[str, Any]) -> None:
    """Called by every rank once it has written its part of `.saving/NAME`: make it readable for
    older servers, flush, describe, rename to OUTPUT_DIR/NAME.

    facts: what the manifest holds beside the files; {"step", "identity", ...}.
    """
    directory = staging(output_dir) / name
    barrier()
    if rank() == 0:
        make_portable(directory)
    barrier()
    files = shared_work(_relative_files(directory), lambda file: _flushed_digest(directory / file))
    if rank() == 0:
        content = {**facts, "world_size": world_size(), "files": files}
        write_text(directory / MANIFEST, json.dumps(content, indent=1) + "\n")
        for folder in {(directory / file).parent for file in files} | {directory}:
            _flush_folder(folder)
        _replace(directory, Path(output_dir) / name)
        with contextlib.suppress(OSError):  # another one lies in it
            staging(output_dir).rmdir()
        _flush_folder(Path(output_dir))
    barrier()


def find_checkpoint(output_dir: str | Path, resume: str, identity: Mapping[str, Any]) -> str | None:
    """The checkpoint to resume from, or None to start fresh. `resume`: auto, never, or a checkpoint
    directory.

    Every rank calls it; they read the files together, each its share, and agree. auto skips
    incomplete and damaged ones with a warning that says why; a named one must be complete.
    identity: of this run; a checkpoint of another is refused before its files are read, and so is,
        under auto, another run's final/. Raises InputError.
    """
    if resume == "never":
        return None
    for checkpoint in agreed(lambda: _candidates(output_dir, resume, identity)):
        fault = find_fault(checkpoint)
        if not fault:
            return str(checkpoint)
        if resume != "auto":
            raise InputError(
                f"resume: {checkpoint} {fault}; use an earlier checkpoint-N, or --resume auto to take the newest complete "
                "one"
            )
        if rank() == 0:
            logger.warning("%s %s; skipped", checkpoint, fault)
    return None


def find_fault(checkpoint: Path) -> str:
    """Why this is no complete checkpoint, or "". Every rank reads its share of the files; all get
    the same answer."""
    fault, expected = agreed(lambda: _read_manifest(checkpoint))
    faults = shared_work(
        sorted(expected), lambda file: _file_fault(checkpoint / file, *expected[file])
    )
    return fault or next(
        (f"is damaged: {file} {fault}" for file, fault in faults.items() if fault), ""
    )


def ranks_of(checkpoint: str | Path) -> int:
    """How many ranks wrote it."""
    return int(read_json(Path(checkpoint) / MANIFEST)["world_size"])


def require_base(checkpoint: str | Path, base: Mapping[str, Any]) -> None:
    """base: {"name", "weights"} now. One in the run's directory may have been made anew by another
    library."""
    recorded = read_json(Path(checkpoint) / MANIFEST).get("base")
    if recorded and base and recorded["weights"] != base["weights"]:
        raise InputError(
            f"{checkpoint} was trained on {recorded['name']}, whose weights were others than those "
            f"in {base['name']} now; put them back, or start anew with --resume never or another "
            "--output_dir"
        )


def remove_old(output_dir: str | Path, limit: int) -> None:
    """Rank 0: all but the newest `limit` checkpoints with a manifest, and those without one; the
    newest stays whatever the limit."""
    complete = [path for path in _checkpoints(Path(output_dir)) if (path / MANIFEST).exists()]
    if limit <= 0 or not complete:
        return
    kept = set(complete[: max(limit, 1)])
    for path in _checkpoints(Path(output_dir)):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def full_disk_is_said(output_dir: str | Path) -> Iterator[None]:
    """A checkpoint that finds no space is one message; what there is of it lies under .saving until
    the next start.

    torch's and safetensors' writers keep the cause to themselves: their own words are said, too,
    and the space that is left.
    """
    try:
        yield
    except (
        OSError,
        RuntimeError,
        InputError,
    ) as error:  # outputs.whole_file says an OSError as an InputError
        if not _is_full_disk(error):
            raise
        left = [path.name for path in _checkpoints(Path(output_dir)) if (path / MANIFEST).exists()]
        kept = f"{left[0]} is intact" if left else "there is no earlier one"
        free = shutil.disk_usage(output_dir).free
        raise InputError(
            f"{output_dir}: no space left on the disk (or over quota) while a checkpoint was "
            f"written, as far as can be told ({_last_line(error)}; {free / 1e6:,.1f} MB free); {kept}. Free some "
            f"space ({STAGING} in it may be deleted) or lower save_total_limit, and give the same command again"
        ) from None


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
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            text in str(error) for text in WRITE_FAILED
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _candidates(output_dir: str | Path, resume: str, identity: Mapping[str, Any]) -> list[Path]:
    """Newest first. Raises InputError where one is of another run."""
    if resume == "auto":
        found = _checkpoints(Path(output_dir))
        for directory in (*found, Path(output_dir) / FINAL):
            _require_same(directory, identity, is_named=False)
        return found
    if not Path(resume).is_dir():
        raise InputError(
            f"resume: no such checkpoint: {resume}; give a checkpoint-N directory, auto or never"
        )
    _require_same(Path(resume), identity, is_named=True)
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


def _require_same(directory: Path, identity: Mapping[str, Any], is_named: bool) -> None:
    """What decides the result must be what it was: a run that went on otherwise would be neither's.

    What a manifest does not record (an older one) cannot be compared: auto refuses it; for a
    checkpoint that is named the user answers.
    """
    if _read_manifest(directory)[0]:
        return  # it is skipped or refused for that
    recorded = read_json(directory / MANIFEST).get("identity", {})
    unknown = sorted(identity.keys() - recorded.keys())
    if unknown and is_named:
        logger.warning(
            "%s does not record %s; it is taken because it was named", directory, ", ".join(unknown)
        )
    differ = [
        f"{name}: {_said(value)} there, {_said(identity.get(name))} now"
        for name, value in recorded.items()
        if _content(value) != _content(identity.get(name))
    ]
    if differ:
        raise InputError(
            f"{directory} was trained with other settings than these: {'; '.join(differ)}. Put back "
            f"what it was to go on; {ANEW}"
        )
    if unknown and not is_named:
        names = ", ".join(unknown) if recorded else "what it was trained with"
        raise InputError(
            f"{directory} does not record {names}: an older version wrote it. If you know that all is "
            f"as it was, name it to go on: --resume CHECKPOINT; {ANEW}"
        )


def _content(value: Any) -> Any:
    """Of something on the disk, what it holds and not where it lies."""
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _said(value: Any) -> str:
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['path']} (sha256 {value['sha256'][:12]}...)"
    return "none" if value is None else str(value)


def _step_of(checkpoint: Path) -> int:
    """The number in its name; 0 where it has none, as one that was copied elsewhere."""
    match = re.fullmatch(CHECKPOINT, checkpoint.name)
    return int(match.group(1)) if match else 0


def _checkpoints(output_dir: Path) -> list[Path]:
    """Newest first, by number."""
    found = [
        path for path in output_dir.glob("checkpoint-*") if re.fullmatch(CHECKPOINT, path.name)
    ]
    return sorted(found, key=_step_of, reverse=True)


def _relative_files(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


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


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
