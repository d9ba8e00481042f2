"""What happens to runs on clusters: killed at any instant, asked to stop, a rank that dies, a full
disk. Two ranks, really launched."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from command_words import flags
from conftest import ROOT, launch
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
    written: the run continues from checkpoint-5.

    stress_resume.py does it twenty times at random, with both stages, ZeRO-2 and ZeRO-3.
    """
    run, log = tmp_path / "run", tmp_path / "log"
    finish(command("stage2", "zero3_cpu", data, base, tmp_path / "whole"))
    words = command("stage2", "zero3_cpu", data, base, run)
    draw = random.Random(0)
    start_and_kill(words, run, log, draw.randint(1, 4), draw.random() * 0.4, Report())
    with started(log, *words) as process:
        wait_for(lambda: (run / ".saving/checkpoint-10").exists(), process, log)
        kill_all(process)
    assert newest_step(run) == 10
    assert not (run / "checkpoint-10").exists()
    assert "a checkpoint that was not finished is removed" in finish(words)
    assert_same_run(run, tmp_path / "whole")


# Slow, because tests/cluster shows that a preempted job loses and repeats no step. This one
# compares to the bit, under ZeRO-2 and torchrun.
@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_goes_on_to_the_bit(data, base, tmp_path):
    """stage1, ZeRO-2. torchrun passes SIGTERM on to its ranks; the deepspeed command does not. They
    stop after the same step."""
    run, log = tmp_path / "run", tmp_path / "log"
    longer = flags(max_steps=40, save_steps=40)
    finish(command("stage1", "zero2", data, base, tmp_path / "whole", *longer))
    words = command("stage1", "zero2", data, base, run, *longer)
    with started(log, "torchrun", *words[1:]) as process:
        wait_for(lambda: newest_step(run) >= 2, process, log)
        process.send_signal(signal.SIGTERM)
        ends(process, log)
    stopped_at = newest_step(run)
    assert 2 <= stopped_at < 40
    assert (run / f"checkpoint-{stopped_at}").exists()
    assert not (run / "final").exists()
    assert f"stopped after step {stopped_at} of 40; the same command goes on" in log.read_text()
    # torchrun prints a traceback of its own. There is none of train.py.
    assert 'ilrec/train.py", line' not in log.read_text()
    finish(words)
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    "zero, ranks", [("zero2", 1), pytest.param("zero3_cpu", 4, marks=pytest.mark.slow)]
)
def test_another_number_of_ranks_goes_on_with_the_same_losses(zero, ranks, data, base, tmp_path):
    """2 ranks x 2 micro-steps of 2 samples, then 1 x 4 or 4 x 1: the same global batches, hence the
    same numbers except for rounding.

    Also: the shards of the checkpoint give the same adapter as the gathered one that lies in it.
    """
    fields = flags(
        max_tokens_per_batch=0, per_device_train_batch_size=2, max_steps=8, lora_dropout=0
    )
    words = command("stage1", zero, data, base, tmp_path / "two", *fields)
    finish(words)
    checkpoint = tmp_path / "two" / "checkpoint-5"
    consolidated = consolidated_adapter(checkpoint)
    gathered = load_file(checkpoint / "adapter_model.safetensors")
    assert consolidated.keys() == gathered.keys()
    assert all(torch.equal(consolidated[name], tensor) for name, tensor in gathered.items())

    words += flags(
        output_dir=tmp_path / "other",
        resume=checkpoint,
        gradient_accumulation_steps=4 // ranks,
    )
    launcher = ["python"] if ranks == 1 else ["torchrun", "--nproc_per_node", str(ranks)]
    finish([*launcher, *words[1:]])
    expected = [line for line in training_lines(tmp_path / "two") if line["step"] > 5]
    for line, want in zip(training_lines(tmp_path / "other"), expected, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert line[name] == pytest.approx(want[name], rel=1e-4), (line["step"], name)


def test_another_run_is_refused_on_all_ranks_at_once(data, base, tmp_path):
    """Rank 0 compares; no rank waits for it, and nothing is loaded first."""
    words = command("stage1", "zero2", data, base, tmp_path / "run", "--max_steps", "1")
    finish(words)
    result = launch("torchrun", *words[1:], "--beta", "0.9", timeout=120)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "another rank has ended" not in output
    message = "checkpoint-1 was trained with other settings than these: beta: 0.1 there, 0.9 now"
    assert message in output
    assert "Loading weights" not in output
    assert not (tmp_path / "run" / ".saving").exists()


def test_the_exit_status_of_one_process_tells_that_it_was_stopped(data, base, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    launcher, script, ds_flag, ds_config, *words = command("stage1", "zero2", data, base, run)
    words += flags(max_steps=2000, save_steps=2000)
    with started(log, "python", script, *words) as process:
        wait_for(lambda: newest_step(run) >= 2, process, log)
        process.send_signal(signal.SIGUSR1)
        assert ends(process, log) == STOPPED
    assert (run / f"checkpoint-{newest_step(run)}").exists()


def test_a_dead_rank_ends_the_others(data, base, tmp_path):
    """SIGKILL to rank 1. Rank 0, which waits for it, ends, and nothing is left half written."""
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
    assert (run / "checkpoint-5").exists()
    assert not (run / "final").exists()


def test_a_rank_that_raises_is_reported_once(data, base, tmp_path):
    """A bug on rank 1 alone: its traceback appears once, and both ranks end."""
    script, log = tmp_path / "bug.py", tmp_path / "log"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from ilrec.processes import run_entry
from ilrec.samples.collators import TrainingCollator
from ilrec.train import train
collate, calls = TrainingCollator.__call__, []
def broken(self, samples):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 5:
        raise KeyError("a bug of this test")
    return collate(self, samples)
TrainingCollator.__call__ = broken
run_entry(train)
""")
    words = command("stage1", "zero3_cpu", data, base, tmp_path / "run")
    with started(log, words[0], str(script), *words[2:]) as process:
        wait_for(lambda: "a bug of this test" in log.read_text(), process, log)
        begun = time.monotonic()
        assert ends(process, log) != 0
    output = log.read_text()
    assert output.count("KeyError: 'a bug of this test'") == 1
    assert output.count("Traceback (most recent call last)") == 1
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
    """The disk fills up after checkpoint-5: one message, and checkpoint-5 is intact. With space
    again, the run goes on."""
    run, log = small_disk / "run", tmp_path / "log"
    words = command("stage1", "zero3_cpu", data, base, run)
    with started(log, *words, "--max_steps", "10") as process:
        wait_for(lambda: (run / "checkpoint-5").exists(), process, log)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 100_000))
        assert ends(process, log) != 0
    output = log.read_text()
    assert output.count("no space left on the disk") == 1, output[-5000:]
    assert "Traceback" not in output, output[-5000:]
    assert "checkpoint-5 is intact" in output
    assert not (run / "checkpoint-10").exists()
    ballast.unlink()
    finish([*words, "--max_steps", "10"])
    assert [line["step"] for line in training_lines(run)] == list(range(1, 11))
