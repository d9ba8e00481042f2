"""Ranks that do not find together, really launched: one message that says why, whoever started
them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from conftest import ROOT, free_port, launch

pytestmark = pytest.mark.launch
SECONDS = 180


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


def run(*command: str, **environment: str) -> tuple[int, str]:
    result = launch(*command, timeout=SECONDS, **environment)
    return result.returncode, result.stdout + result.stderr


def words(data, base, tmp_path) -> list[str]:
    return [
        "ilrec/train.py",
        "--config",
        "ilrec/recipes/stage1.yaml",
        "--data",
        str(data),
        "--model",
        str(base),
        "--output_dir",
        str(tmp_path / "run"),
        "--num_readout_layers",
        "2",
        "--max_steps",
        "1",
    ]


def test_a_taken_port_is_named_to_ranks_started_by_hand(data, base, tmp_path, taken_port):
    status, said = run(
        "python",
        *words(data, base, tmp_path),
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(taken_port),
    )
    assert status == 2 and "Traceback" not in said and "another rank has ended" not in said, said[
        -3000:
    ]
    assert (
        said.count(
            f"error: rank 0 of 2 could not join the others at MASTER_ADDR 127.0.0.1, MASTER_PORT {taken_port}: "
        )
        == 1
    )
    assert (
        "EADDRINUSE" in said
        and "Another program has that port" in said
        and not (tmp_path / "run").exists()
    )


@pytest.mark.slow  # the same message as above, by the launcher's way
def test_a_taken_port_is_named_under_the_deepspeed_command(data, base, tmp_path, taken_port):
    train = words(data, base, tmp_path)
    status, said = run(
        "python",
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        "2",
        "--master_port",
        str(taken_port),
        train[0],
        "--ds_config",
        "ds_configs/zero3_cpu.json",
        *train[1:],
    )
    assert status != 0 and "EADDRINUSE" in said, said[-3000:]
    assert f"MASTER_PORT {taken_port}: " in said and "another rank has ended" not in said


def test_a_rank_that_never_comes_is_not_called_dead(data, base, tmp_path):
    """rank.py, too; of two ranks one is started. It waits as long as it is told, here a second."""
    script = tmp_path / "impatient.py"
    script.write_text(f"""
import sys, datetime
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed as dist
from ilrec.entry import joining_ranks, run_entry
def main(argv):
    with joining_ranks():
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=1))
run_entry(main)
""")
    status, said = run(
        "python",
        str(script),
        RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    assert status == 2 and "1/2 clients joined. All ranks must be started" in said, said[-3000:]
