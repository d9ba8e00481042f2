"""What happens to runs on clusters: killed at any instant, asked to stop, a rank that dies, a full
disk. Two ranks, really launched."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import launch
from launched_runs import (
    assert_same_run,
    command,
    ends,
    finish,
    kill_all,
    newest_step,
    ranks_of,
    started,
    training_lines,
    wait_for,
)
from safetensors.torch import load_file
from stress_resume import Report, start_and_kill

from ilrec.training.stop import STOPPED
from ilrec.training.zero3 import consolidated_adapter

pytestmark = pytest.mark.launch


def test_killed_at_any_time_and_while_saving_goes_on_to_the_bit(data, base, tmp_path):
    """stage2, ZeRO-3. SIGKILL to all ranks in the middle of a step, then while checkpoint-10 is
    written: step 5's is gone on from.

    Twenty random ones, both stages, ZeRO-2 and ZeRO-3: stress_resume.py.
    """
    run, log = tmp_path / "run", tmp_path / "log"
    finish(command("stage2", "zero3_cpu", data, base, tmp_path / "whole"))
    draw = random.Random(0)
    start_and_kill(
        command("stage2", "zero3_cpu", data, base, run),
        run,
        log,
        draw.randint(1, 4),
        draw.random() * 0.4,
        Report(),
    )
    with started(log, *command("stage2", "zero3_cpu", data, base, run)) as process:
        wait_for(lambda: (run / ".saving/checkpoint-10").exists(), process, log)
        kill_all(process)
    assert newest_step(run) == 10 and not (run / "checkpoint-10").exists()
    assert "a checkpoint that was not finished is removed" in finish(
        command("stage2", "zero3_cpu", data, base, run)
    )
    assert_same_run(run, tmp_path / "whole")


# Tests/cluster: a preempted job loses and repeats no step; here to the bit, under ZeRO-2 and
# torchrun.
@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_goes_on_to_the_bit(data, base, tmp_path):
    """stage1, ZeRO-2. torchrun hands SIGTERM on to its ranks, as the deepspeed command does not;
    they stop after the same step."""
    run, log, longer = (
        tmp_path / "run",
        tmp_path / "log",
        ("--max_steps", "40", "--save_steps", "40"),
    )
    finish(command("stage1", "zero2", data, base, tmp_path / "whole", *longer))
    with started(
        log, "torchrun", *command("stage1", "zero2", data, base, run, *longer)[1:]
    ) as process:
        wait_for(lambda: newest_step(run) >= 2, process, log)
        process.send_signal(signal.SIGTERM)
        ends(process, log)
    stopped_at = newest_step(run)
    assert 2 <= stopped_at < 40 and (run / f"checkpoint-{stopped_at}").exists()
    assert f"stopped after step {stopped_at} of 40; the same command goes on" in log.read_text()
    assert not (run / "final").exists() and 'ilrec/train.py", line' not in log.read_text(), (
        "torchrun has a traceback of its own"
    )
    finish(command("stage1", "zero2", data, base, run, *longer))
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    "zero, ranks", [("zero2", 1), pytest.param("zero3_cpu", 4, marks=pytest.mark.slow)]
)
def test_another_number_of_ranks_goes_on_with_the_same_losses(zero, ranks, data, base, tmp_path):
    """2 ranks x 2 micro-steps of 2 samples, then 1 x 4 or 4 x 1: the same global batches, hence the
    same numbers but for rounding.

    And a merge that finds no gathered adapter in the checkpoint puts the same one together from its
    shards.
    """
    words = [
        *command(
            "stage1",
            zero,
            data,
            base,
            tmp_path / "two",
            "--max_tokens_per_batch",
            "0",
            "--per_device_train_batch_size",
            "2",
            "--max_steps",
            "8",
            "--lora_dropout",
            "0",
        )
    ]
    finish(words)
    checkpoint = tmp_path / "two" / "checkpoint-5"
    consolidated, gathered = (
        consolidated_adapter(checkpoint),
        load_file(checkpoint / "adapter_model.safetensors"),
    )
    assert consolidated.keys() == gathered.keys()
    assert all(torch.equal(consolidated[name], tensor) for name, tensor in gathered.items())
    words += [
        "--output_dir",
        str(tmp_path / "other"),
        "--resume",
        str(checkpoint),
        "--gradient_accumulation_steps",
        str(4 // ranks),
    ]
    finish(
        ["python", *words[1:]]
        if ranks == 1
        else ["torchrun", "--nproc_per_node", str(ranks), *words[1:]]
    )
    expected = [line for line in training_lines(tmp_path / "two") if line["step"] > 5]
    for line, want in zip(training_lines(tmp_path / "other"), expected, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert line[name] == pytest.approx(want[name], rel=1e-4), (line["step"], name)


def test_another_run_is_refused_on_all_ranks_at_once(data, base, tmp_path):
    """Rank 0 compares; no rank waits for it, and nothing is loaded first."""
    words = command("stage1", "zero2", data, base, tmp_path / "run", "--max_steps", "1")
    finish(words)
    result = launch("torchrun", *words[1:], "--beta", "0.9", timeout=120)
    said = result.stdout + result.stderr
    assert result.returncode != 0 and "another rank has ended" not in said
    assert (
        "checkpoint-1 was trained with other settings than these: beta: 0.1 there, 0.9 now" in said
    )
    assert "Loading weights" not in said and not (tmp_path / "run" / ".saving").exists()


def test_one_process_says_by_its_exit_status_that_it_was_stopped(data, base, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = command("stage1", "zero2", data, base, run)
    with started(
        log, "python", words[1], *words[4:], "--max_steps", "2000", "--save_steps", "2000"
    ) as process:
        wait_for(lambda: newest_step(run) >= 2, process, log)
        process.send_signal(signal.SIGUSR1)
        assert ends(process, log) == STOPPED
    assert (run / f"checkpoint-{newest_step(run)}").exists()


def test_a_dead_rank_ends_the_others(data, base, tmp_path):
    """SIGKILL to rank 1: rank 0, which waits for it, ends; nothing is left half written."""
    run, log = tmp_path / "run", tmp_path / "log"
    with started(
        log, *command("stage1", "zero3_cpu", data, base, run, "--max_steps", "2000")
    ) as process:
        wait_for(lambda: newest_step(run) >= 6, process, log)
        begun = time.monotonic()
        ranks_of(process)[1].kill()
        assert ends(process, log) != 0
    assert time.monotonic() - begun < 60
    assert "Traceback" not in log.read_text(), "that another rank has gone is no bug of this one"
    assert (run / "checkpoint-5").exists() and not (run / "final").exists()


def test_a_rank_that_raises_says_so_once(data, base, tmp_path):
    """A bug on rank 1 alone: its traceback, once; both end."""
    script, log = tmp_path / "bug.py", tmp_path / "log"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).resolve().parent.parent.parent)!r})
from ilrec import train as entry
from ilrec.data.collators import TrainingCollator
from ilrec.entry import run_entry
collate, calls = TrainingCollator.__call__, []
def broken(self, samples):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 5:
        raise KeyError("a bug of this test")
    return collate(self, samples)
TrainingCollator.__call__ = broken
run_entry(entry.train)
""")
    words = command("stage1", "zero3_cpu", data, base, tmp_path / "run")
    with started(log, words[0], str(script), *words[2:]) as process:
        wait_for(lambda: "a bug of this test" in log.read_text(), process, log)
        begun = time.monotonic()
        assert ends(process, log) != 0
    said = log.read_text()
    assert (
        said.count("KeyError: 'a bug of this test'") == 1
        and said.count("Traceback (most recent call last)") == 1
    )
    assert time.monotonic() - begun < 60


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_the_previous_checkpoint(data, base, tmp_path, small_disk):
    """The disk fills up after checkpoint-5: one message, checkpoint-5 intact; with space again the
    run goes on."""
    run, log = small_disk / "run", tmp_path / "log"
    words = command("stage1", "zero3_cpu", data, base, run)
    with started(log, *words, "--max_steps", "10") as process:
        wait_for(lambda: (run / "checkpoint-5").exists(), process, log)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 100_000))
        assert ends(process, log) != 0
    said = log.read_text()
    assert said.count("no space left on the disk") == 1 and "Traceback" not in said, said[-5000:]
    assert "checkpoint-5 is intact" in said and not (run / "checkpoint-10").exists()
    ballast.unlink()
    finish([*words, "--max_steps", "10"])
    assert [line["step"] for line in training_lines(run)] == list(range(1, 11))
