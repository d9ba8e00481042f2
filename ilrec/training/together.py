"""What ranks do together beside training: agree on what one has read, share work over files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ilrec.errors import InputError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def agreed(read: Callable[[], Any]) -> Any:
    """read() of rank 0, on every rank: where a directory is not shared, ranks must not part ways.

    Its InputError is raised on every rank, too: none waits for one that has ended.
    """
    if not dist.is_initialized():
        return read()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = read()
        except InputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def shared_work(files: list[str], work: Callable[[str], Any]) -> dict[str, Any]:
    """{file: work(file)} of all files, on every rank; each did every `world_size`-th."""
    mine = {file: work(file) for file in files[rank() :: world_size()]}
    if not dist.is_initialized():
        return mine
    shares: list[dict[str, Any]] = [{}] * world_size()
    dist.all_gather_object(shares, mine)
    merged = {file: value for share in shares for file, value in share.items()}
    return {file: merged[file] for file in files}
