"""Ranks that do not find each other, really launched: one message tells why, whoever started
them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from command_words import flags
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
    fields = flags(
        config="ilrec/recipes/stage1.yaml",
        data=data,
        model=base,
        output_dir=tmp_path / "run",
        num_readout_layers=2,
        max_steps=1,
    )
    return ["ilrec/train.py", *fields]


def test_a_taken_port_is_named_to_ranks_started_by_hand(data, base, tmp_path, taken_port):
    status, output = run(
        "python",
        *words(data, base, tmp_path),
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(taken_port),
    )
    assert status == 2, output[-3000:]
    assert "Traceback" not in output
    assert "another rank has ended" not in output
    message = (
        "error: rank 0 of 2 could not join the others at MASTER_ADDR 127.0.0.1, "
        f"MASTER_PORT {taken_port}: "
    )
    assert output.count(message) == 1
    assert "EADDRINUSE" in output
    assert "Another program has that port" in output
    assert not (tmp_path / "run").exists()


# Slow, because it is the message of the test above, with the launcher between.
@pytest.mark.slow
def test_a_taken_port_is_named_under_the_deepspeed_command(data, base, tmp_path, taken_port):
    launcher = ["python", "-m", "deepspeed.launcher.runner"]
    launcher += flags(num_gpus=2, master_port=taken_port)
    script, *fields = words(data, base, tmp_path)
    status, output = run(*launcher, script, "--ds_config", "ds_configs/zero3_cpu.json", *fields)
    assert status != 0, output[-3000:]
    assert "EADDRINUSE" in output, output[-3000:]
    assert f"MASTER_PORT {taken_port}: " in output
    assert "another rank has ended" not in output


def test_a_rank_that_never_comes_is_not_called_dead(data, base, tmp_path):
    """One of two ranks is started. It waits as long as it is told, here a second."""
    script = tmp_path / "impatient.py"
    script.write_text(f"""
import sys, datetime
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed as dist
from ilrec.processes import joining_ranks, run_entry
def main(argv):
    with joining_ranks():
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=1))
run_entry(main)
""")
    status, output = run(
        "python",
        str(script),
        RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    assert status == 2, output[-3000:]
    assert "1/2 clients joined. All ranks must be started" in output
