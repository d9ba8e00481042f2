"""Who a process is, and how an error is reported: a start that failed, a lost peer, or a bug."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed import DistBackendError, DistNetworkError

from ilrec import processes
from ilrec.errors import InputError
from ilrec.processes import backend_line, joining_ranks, rank, run_entry, world_size

# The words of torch 2.13 and NCCL 2.26.
TAKEN = (
    "The server socket has failed to listen on any local network address. port: 29500, "
    "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
)
DUPLICATE = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage "
    "(run with NCCL_DEBUG=WARN for details), NCCL version 2.26.2\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 65000"
)
GONE = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
    "[127.0.0.1]:42135"
)
MEMORY = (
    "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nout of memory"
)
CLIENTS = "Timed out after 6 seconds waiting for clients. 1/2 clients joined."
NO_ADDRESS = (
    "Error initializing torch.distributed using env:// rendezvous: environment variable "
    "MASTER_ADDR expected, but not set"
)
FRAMES = (
    "[c10d] unknown host\nException raised from here (most recent call first):\nframe #0: start"
)


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_launcher_says_who_a_process_is_until_there_is_a_group(monkeypatch):
    assert (rank(), world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (3, 4)


def test_then_the_group_says_it(group, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (0, 1)


@pytest.mark.parametrize(
    "error, words, advice",
    [
        (
            DistNetworkError(TAKEN),
            "name: EADDRINUSE, message: address already in use. ",
            "Another program has that port",
        ),
        (
            DistBackendError(DUPLICATE),
            ": Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 65000. ",
            "Start no more ranks on a node than it has GPUs",
        ),
        (
            torch.distributed.DistStoreError(CLIENTS),
            "1/2 clients joined. ",
            "All ranks must be started",
        ),
        (
            ValueError(NO_ADDRESS),
            "MASTER_ADDR expected, but not set. ",
            "All ranks must be started",
        ),
        (RuntimeError(FRAMES), ": [c10d] unknown host. ", "All ranks must be started"),
    ],
)
def test_a_start_that_fails_is_reported_with_the_backends_words(error, words, advice, monkeypatch):
    for name, value in (
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "29500"),
    ):
        monkeypatch.setenv(name, value)
    where = "^rank 1 of 2 could not join the others at MASTER_ADDR node7, MASTER_PORT 29500: "
    with pytest.raises(InputError, match=where) as caught, joining_ranks():
        raise error
    assert words + advice in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid device ordinal"),
        ValueError("cosin is no scheduler"),
        InputError("ds.json: no such file"),
        KeyError("gloo"),
    ],
)
def test_other_errors_at_the_start_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, joining_ranks():
        raise error
    assert caught.value is error


def ends(error: Exception, monkeypatch) -> int | None:
    """The exit status of an entry that raises the error; None: it comes out as it is."""
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise SystemExit(status)

    def main(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(processes.os, "_exit", leave)
    try:
        run_entry(main)
    except SystemExit:
        return statuses[0]
    except type(error):
        return None


def test_a_lost_peer_is_one_message_with_the_backends_line(group, monkeypatch, capsys):
    assert ends(RuntimeError(GONE), monkeypatch) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "another rank has ended" in message
    assert f"noticed here as: {GONE})" in message


@pytest.mark.parametrize(
    "error",
    [
        DistBackendError(MEMORY),
        DistBackendError(DUPLICATE),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("hub: Connection refused"),
        DistNetworkError(TAKEN),
    ],
)
def test_a_collective_that_fails_for_another_reason_is_a_bug_with_its_traceback(
    error, group, monkeypatch
):
    assert ends(error, monkeypatch) is None


def test_before_the_group_is_up_nobody_is_lost(monkeypatch):
    assert ends(RuntimeError(GONE), monkeypatch) is None


def test_the_line_that_names_the_cause():
    assert backend_line(DistBackendError(MEMORY)) == "out of memory"
    assert backend_line(RuntimeError("")) == "RuntimeError"


def test_bad_input_among_ranks_ends_at_once(group, monkeypatch, capsys):
    """Without the interpreter's own end, which can take longer than the others wait."""
    assert ends(InputError("a.json: no such file"), monkeypatch) == processes.BAD_INPUT
    assert capsys.readouterr().err == "error: a.json: no such file\n"
