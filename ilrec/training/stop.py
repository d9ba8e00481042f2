"""Stopping on request: SIGTERM or SIGUSR1 lets the step end, writes a checkpoint, and ends the run
with the exit status STOPPED.

A launcher also sends SIGTERM when one rank has died, to the ranks that are left. These wait for the
dead one in a collective operation, where Python runs no signal handler. So a thread that wakes up
at the signal ends them.
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

# EX_TEMPFAIL of sysexits.h: the run is not finished, and the same command continues it.
STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
logger = logging.getLogger(__name__)


class StopRequest(TrainerCallback):
    """Every rank has one. A signal to any rank stops all of them after the same step."""

    def __init__(self) -> None:
        # This process got a signal.
        self.is_asked = False
        # All ranks know that one of them did.
        self.is_stopping = False
        self.peers: list[int] = []

    def __enter__(self) -> StopRequest:
        """Install the handlers. In the main thread, after the process group has started."""
        self.peers = _other_ranks_here()
        # Python writes the number of each signal into this pair at once, also while the main thread
        # is inside a collective operation. That wakes up the thread.
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
        # The thread reads the end of the stream, and ends.
        self._wake.close()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        # One small reduction in each step: no rank may stop alone while the others wait for it.
        self.is_stopping = _any_rank(self.is_asked, args.device)
        self._save_and_stop(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        # It may have taken minutes, in which the signal came. The checkpoint of this step is
        # written after it and holds its result, so that a resumed run does not lack it.
        if not self.is_stopping:
            self.on_step_end(args, state, control)

    def _save_and_stop(self, state: TrainerState, control: TrainerControl) -> None:
        if self.is_stopping:
            logger.warning("asked to stop: a checkpoint of step %d is written", state.global_step)
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: object) -> None:
        self.is_asked = True

    def _watch(self) -> None:
        """The thread: on SIGTERM, end this process if another rank on this machine has died."""
        with self._woken:
            while number := self._woken.recv(1):
                if number[0] == signal.SIGTERM and not all(map(_is_alive, self.peers)):
                    os._exit(128 + signal.SIGTERM)


def _any_rank(value: bool, device: torch.device) -> bool:
    """Whether `value` is true on any rank."""
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
    """Whether the process runs: it is not gone, and no zombie that its launcher has yet to
    collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
