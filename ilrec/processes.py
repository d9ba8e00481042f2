"""What every command line of ilrec shares: one clear message for bad input, exit codes, and who
this process is."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ilrec.errors import InputError

# Exit status for bad input, as argparse has it; a bug exits with 1 and its traceback.
BAD_INPUT = 2
# Longer than the launchers take to end the other ranks once one has exited (deepspeed and torchrun
# poll within a second).
LAUNCHER_GRACE_SECONDS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# Of an error's text: that it comes from what connects the ranks ...
FROM_BACKEND = ("gloo", "NCCL", "c10d", "TCPStore", "env:// rendezvous")
# ... and that the rank at the other end is gone: gloo's and the store's words, and NCCL's
# ncclRemoteError.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exit",
)
# What to do where ranks do not find together, by what the backend says; last where it says anything
# else.
RENDEZVOUS_ADVICE = (
    (
        "EADDRINUSE",
        "Another program has that port, an earlier run perhaps: end it, or give another port "
        "(--master_port of deepspeed and torchrun; MASTER_PORT for ranks started by hand)",
    ),
    (
        "Duplicate GPU",
        "Start no more ranks on a node than it has GPUs, and give each its LOCAL_RANK, "
        "the number of its GPU",
    ),
    (
        "",
        "All ranks must be started, each with its own RANK, all with one WORLD_SIZE, MASTER_ADDR and "
        "MASTER_PORT, and must reach that port",
    ),
)
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "accelerate",
    "datasets",
    "numpy",
    "flash-attn",
    "triton",
)


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def run_entry(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)`, which returns the exit status (None: 0). Bad input: one message, non-zero
    everywhere. A bug: its traceback."""
    logging.basicConfig(
        level=logging.INFO if rank() == 0 else logging.ERROR,
        stream=sys.stderr,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "filelock", "deepspeed", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        if rank() != 0:
            # Where rank 0 met the same error, it has said so and the launcher ends this process
            # while it waits.
            time.sleep(LAUNCHER_GRACE_SECONDS)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        print(
            f"error: {error.filename or 'a file'}: no space left on the disk (or over quota)",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(BAD_INPUT)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        print(
            f"error: rank {rank()}: another rank has ended; its message says why, or its exit status "
            f"where it was killed (noticed here as: {backend_line(error)})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    leave_process_group(status or 0)


def leave_process_group(status: int = 0) -> None:
    """The end of a process that a launcher started and that has done its work; nothing for one that
    runs alone.

    Without the interpreter's own end, in which a library's thread now and then aborts the process
    ("terminate called without an active exception", seen in two of some sixty launches of two
    ranks), so that the launcher reports a failed run.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        sys.exit(status)


@contextlib.contextmanager
def joining_ranks() -> Iterator[None]:
    """Inside, the process group is started. Where that fails: an InputError with the backend's own
    words.

    NCCL connects ranks in their first collective operation: only after one does the group count as
    up.
    """
    try:
        yield
        if torch.distributed.is_initialized():
            device = "cuda" if torch.cuda.is_available() else "cpu"  # the process's current GPU
            torch.distributed.all_reduce(torch.zeros(1, device=device))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or not _is_from_backend(error):
            raise
        place = ", ".join(
            f"{name} {os.environ.get(name, '(not set)')}" for name in ("MASTER_ADDR", "MASTER_PORT")
        )
        advice = next(advice for text, advice in RENDEZVOUS_ADVICE if text in str(error))
        raise InputError(
            f"rank {rank()} of {world_size()} could not join the others at {place}: "
            f"{backend_line(error)}. {advice}"
        ) from None


def backend_line(error: BaseException) -> str:
    """The last line of an error's text, where NCCL names the cause; not the C++ frames that may
    follow."""
    lines = str(error).partition("Exception raised from")[0].strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def _is_from_backend(error: BaseException) -> bool:
    named = any(text in str(error) for text in FROM_BACKEND)
    return named or isinstance(error, torch.distributed.DistError)


def _is_lost_peer(error: RuntimeError) -> bool:
    """A collective operation that failed because a rank is gone: the cause is in its message, not
    here."""
    lost = any(text in str(error) for text in LOST_PEER)
    return lost and torch.distributed.is_initialized() and _is_from_backend(error)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if cpuinfo.exists()
        else None
    )
    return f"{found[1] if found else platform.machine()} CPU"


def environment(argv: list[str]) -> dict[str, object]:
    """Versions, commit, world size and command: what a reader needs to run the same again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": [Path(sys.argv[0]).name, *argv],
        "commit": _commit(),
        "world_size": world_size(),
        "python": platform.python_version(),
        "versions": versions,
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    command = [
        "git",
        "-C",
        str(Path(__file__).resolve().parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
