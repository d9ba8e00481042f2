"""The processes of one program: who this one is, how they find each other, and how each one ends.

Every command line of ilrec starts through run_entry: one clear message for bad input, an exit
status that launchers understand, and no message from a rank that only lost its peers.
"""

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
from typing import NoReturn

import torch

from ilrec.errors import InputError

# The exit status for bad input, the same as argparse's. A bug exits with 1 and its traceback.
BAD_INPUT = 2
# Longer than the launchers take to end the other ranks after one has exited: deepspeed and torchrun
# look within a second.
LAUNCHER_GRACE_SECONDS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# An error comes from the connection between ranks if its text has one of these words.
FROM_BACKEND = ("gloo", "NCCL", "c10d", "TCPStore", "env:// rendezvous")
# And the rank at the other end is gone if it has one of these: the words of gloo and of the store,
# and NCCL's ncclRemoteError.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exit",
)
# (words of the backend, what to do) for ranks that do not find each other. The last one fits all.
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
        "All ranks must be started, each with its own RANK, all with one WORLD_SIZE, MASTER_ADDR "
        "and MASTER_PORT, and must reach that port",
    ),
)
# Libraries whose messages at level INFO would hide those of the run.
NOISY_LOGGERS = ("httpx", "filelock", "deepspeed", "DeepSpeed")
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
    """The number of this process: in the process group, or, before there is one, as the launcher
    set it. 0 for a process on its own."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are: in the process group, or, before there is one, as the launcher
    set it. 1 for a process on its own."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def run_entry(main: Callable[[list[str]], int | None]) -> None:
    """Run `main(argv)`, which returns the exit status (None: 0).

    Bad input, a full disk and a lost peer end in one message and a non-zero status on every rank. A
    bug keeps its traceback.
    """
    _start_logging()
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        if rank() != 0:
            # If rank 0 has met the same error, it has reported it, and the launcher ends this
            # process while it waits.
            time.sleep(LAUNCHER_GRACE_SECONDS)
        _end_with(str(error))
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        _end_with(f"{error.filename or 'a file'}: no space left on the disk (or over quota)")
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        print(
            f"error: rank {rank()}: another rank has ended; its message says why, or its exit "
            f"status if it was killed (noticed here as: {backend_line(error)})",
            file=sys.stderr,
            flush=True,
        )
        # Not sys.exit: the interpreter's end would wait for the group that has lost a rank.
        os._exit(1)
    leave_process_group(status or 0)


def _start_logging() -> None:
    logging.basicConfig(
        level=logging.INFO if rank() == 0 else logging.ERROR,
        stream=sys.stderr,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _end_with(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    # At once, if there are other ranks: the interpreter's own end can take seconds, and they keep
    # the same message back for LAUNCHER_GRACE_SECONDS only.
    if torch.distributed.is_initialized():
        _exit_at_once(BAD_INPUT)
    sys.exit(BAD_INPUT)


def leave_process_group(status: int = 0) -> None:
    """End a process that a launcher started and whose work is done.

    Does nothing for a process on its own with status 0. Otherwise the process ends here, without
    the interpreter's own end. In that, a thread of a library now and then aborts the process
    ("terminate called without an active exception", seen in two of about sixty launches of two
    ranks), and the launcher reports a failed run.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _exit_at_once(status)
    if status:
        sys.exit(status)


def _exit_at_once(status: int) -> NoReturn:
    """Without the interpreter's own end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start_processes() -> torch.device:
    """Start the process group, if a launcher started several processes. Returns this one's
    device."""
    has_cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if has_cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size() > 1:
        with joining_ranks():
            torch.distributed.init_process_group("nccl" if has_cuda else "gloo")
    return device


@contextlib.contextmanager
def joining_ranks() -> Iterator[None]:
    """Start the process group inside this block.

    If that fails, raises InputError with the backend's own words and advice. NCCL connects the
    ranks only in their first collective operation. So one is run here, and after it the group
    counts as started.
    """
    try:
        yield
        if torch.distributed.is_initialized():
            # "cuda" is the current GPU of this process.
            device = "cuda" if torch.cuda.is_available() else "cpu"
            torch.distributed.all_reduce(torch.zeros(1, device=device))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or not is_from_backend(error):
            raise
        address = os.environ.get("MASTER_ADDR", "(not set)")
        port = os.environ.get("MASTER_PORT", "(not set)")
        advice = next(advice for text, advice in RENDEZVOUS_ADVICE if text in str(error))
        raise InputError(
            f"rank {rank()} of {world_size()} could not join the others at MASTER_ADDR {address}, "
            f"MASTER_PORT {port}: {backend_line(error)}. {advice}"
        ) from None


def backend_line(error: BaseException) -> str:
    """The last line of an error's text, where NCCL names the cause. Leaves out the C++ frames that
    may follow."""
    lines = str(error).partition("Exception raised from")[0].strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[-1].strip().rstrip(".")


def is_from_backend(error: BaseException) -> bool:
    is_named = any(text in str(error) for text in FROM_BACKEND)
    return is_named or isinstance(error, torch.distributed.DistError)


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another rank is gone.

    The cause is then in that rank's message, and this one has nothing to add.
    """
    if not torch.distributed.is_initialized():
        return False
    return is_from_backend(error) and any(text in str(error) for text in LOST_PEER)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = None
    if cpuinfo.exists():
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    return f"{model[1] if model else platform.machine()} CPU"


def environment(argv: list[str]) -> dict[str, object]:
    """What a reader needs to run the same again: versions, commit, world size, command."""
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
    """The commit of this checkout, with -dirty if files have changed; None outside of git."""
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
