"""Launched runs that are disturbed: started in the background, killed or asked to stop at a chosen
moment, then compared line by line with a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from command_words import flags
from conftest import ROOT, as_user, launch
from safetensors.torch import load_file

# No fault may leave a process behind for longer.
SECONDS_TO_END = 60


@contextlib.contextmanager
def started(log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen]:
    """Like conftest.launch, in the background, with its output in `log`. Nothing of it is left
    after the block."""
    words, variables = as_user(command, environment)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for child in descendants(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


def command(
    stage: str, zero: str, data: Path, base: Path, output_dir: Path, *words: str
) -> list[str]:
    """Three epochs of four steps with dropout, and a checkpoint after every fifth step: most of
    them lie within an epoch."""
    fields = flags(
        ds_config=f"ds_configs/{zero}.json",
        config=f"ilrec/recipes/{stage}.yaml",
        data=data,
        model=base,
        output_dir=output_dir,
        num_readout_layers=2,
        lora_rank=4,
        lora_dropout=0.1,
        max_tokens_per_batch=700,
        max_steps=12,
        learning_rate=2e-3,
        gradient_accumulation_steps=2,
        save_steps=5,
        logging_steps=1,
    )
    return ["deepspeed", "ilrec/train.py", *fields, *words]


def finish(words: list[str]) -> str:
    """Run a command to its end and return its output.

    An undisturbed run is the same under torchrun, which starts sooner.
    """
    result = launch(*("torchrun" if word == "deepspeed" else word for word in words))
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    return output


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes, in the order of their ranks."""
    found = {}
    for child in descendants(process):
        with contextlib.suppress(psutil.Error):
            # Launchers and their helpers may have a RANK, too, but run no script of ours.
            scripts = [word for word in child.cmdline()[:4] if word.endswith(".py")]
            is_training = any("launch" not in script for script in scripts)
            if is_training and "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
    return [found[rank] for rank in sorted(found)]


def wait_for(
    is_so: Callable[[], object], process: subprocess.Popen, log: Path, timeout: float = 180
) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert process.poll() is None, f"ended early:\n{log.read_text()[-6000:]}"
        assert time.monotonic() < deadline, f"waited for nothing:\n{log.read_text()[-6000:]}"
        time.sleep(0.001)


def ends(process: subprocess.Popen, log: Path) -> int:
    """Wait for the end. Returns the exit status; all that the process started has ended, too."""
    children = descendants(process)
    status = process.wait(SECONDS_TO_END)
    _, alive = psutil.wait_procs(children, timeout=SECONDS_TO_END)
    assert not alive, f"still there: {alive}\n{log.read_text()[-6000:]}"
    return status


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to launcher and ranks at once, like a machine that loses its power."""
    for child in [psutil.Process(process.pid), *descendants(process)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    process.wait()


def training_lines(run: Path) -> list[dict]:
    """What training logged. These lines hold nothing that depends on the clock."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if "loss" in line]


def newest_step(run: Path) -> int:
    with contextlib.suppress(json.JSONDecodeError, FileNotFoundError):
        return max((line["step"] for line in training_lines(run)), default=0)
    return 0


def assert_same_run(run: Path, expected: Path) -> None:
    """Every logged number and every weight, to the bit."""
    mine, theirs = training_lines(run), training_lines(expected)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for line, want in zip(mine, theirs, strict=True):
        assert line == want
    for path in sorted((expected / "final").glob("*.safetensors")):
        weights = load_file(run / "final" / path.name)
        for name, tensor in load_file(path).items():
            assert torch.equal(weights[name], tensor), name
