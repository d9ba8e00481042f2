"""Asked to stop: SIGTERM or SIGUSR1 ends the step, a checkpoint is written, and the run leaves with
STOPPED.

A launcher also sends SIGTERM to the ranks that are left when one has died. Those wait for it in a
collective operation, where Python runs no handler; a thread that wakes up at the signal ends them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# EX_TEMPFAIL of sysexits.h: not finished, and the same command goes on.
STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
logger = logging.getLogger(__name__)


class StopRequest(TrainerCallback):
    """Every rank installs one; a signal to any of them stops all after the same step."""

    def __init__(self) -> None:
        self.is_asked = False  # this process got a signal
        self.is_stopping = False  # all ranks know
        self.peers: list[int] = []

    def __enter__(self) -> StopRequest:
        """In the main thread, once the process group is there."""
        self.peers = _other_ranks_here()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake.close()  # which ends the thread

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.is_stopping = _any_rank(self.is_asked, args.device)
        if self.is_stopping:
            logger.warning("asked to stop: a checkpoint of step %d is written", state.global_step)
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: object) -> None:
        self.is_asked = True

    def _watch(self) -> None:
        with self._woken:
            while number := self._woken.recv(1):
                if number[0] == signal.SIGTERM and not all(map(_is_alive, self.peers)):
                    os._exit(128 + signal.SIGTERM)


def _any_rank(value: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return value
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _other_ranks_here() -> list[int]:
    """Process numbers of the other ranks on this machine."""
    if not dist.is_initialized():
        return []
    places: list[tuple[str, int]] = [("", 0)] * dist.get_world_size()
    dist.all_gather_object(places, (socket.gethostname(), os.getpid()))
    return [pid for host, pid in places if host == socket.gethostname() and pid != os.getpid()]


def _is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that its launcher has not yet collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
