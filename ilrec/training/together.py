"""What ranks do together beside training: agree on what one of them has read, share work on files.

Every function here is collective: all ranks must call it, in the same order. A process on its own
may call it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ilrec.errors import InputError
from ilrec.processes import rank, world_size


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def agreed(read: Callable[[], Any]) -> Any:
    """What read() returns on rank 0, on every rank.

    So ranks cannot decide differently when they do not see the same files. If read() raises
    InputError, every rank raises it: none waits for a rank that has ended.
    """
    if not dist.is_initialized():
        return read()
    answer = fault = None
    if rank() == 0:
        try:
            answer = read()
        except InputError as error:
            fault = str(error)
    both = [answer, fault]
    dist.broadcast_object_list(both)
    answer, fault = both
    if fault is not None:
        raise InputError(fault)
    return answer


def shared_work(files: list[str], work: Callable[[str], Any]) -> dict[str, Any]:
    """{file: work(file)} of all files, on every rank. Each rank works on its share of them."""
    if not dist.is_initialized():
        return {file: work(file) for file in files}
    mine = {file: work(file) for file in files[rank() :: world_size()]}
    shares: list[dict[str, Any]] = [{}] * world_size()
    dist.all_gather_object(shares, mine)
    done: dict[str, Any] = {}
    for share in shares:
        done |= share
    # In the order of `files`, which is the order of a manifest.
    return {file: done[file] for file in files}
