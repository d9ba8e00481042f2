"""The SLURM templates on a real SLURM of three nodes on this machine, in jobs of two.

Each node has its own network namespace. So a master's address of localhost fails here as it would
on a cluster. Needs root and Debian's packages, which start.sh installs: `make test-cluster`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_words import flags
from conftest import INIT, ROOT, write_data

pytestmark = pytest.mark.cluster
HERE = Path(__file__).resolve().parent
FIELDS = flags(
    num_readout_layers=2, lora_rank=4, lora_dropout=0.1, logging_steps=1, learning_rate=2e-3
)


class Lab:
    """A running SLURM, and what its user sets. The paths have spaces in them."""

    def __init__(self, lab: Path, home: Path) -> None:
        self.lab = lab
        self.home = home
        self.environment = {
            **os.environ,
            "SLURMLAB": str(self.lab),
            "SLURM_CONF": str(self.lab / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DS_CONFIG": "ds_configs/zero3_cpu.json",
            "RANKS_PER_NODE": "1",
            "OMP_NUM_THREADS": "1",
            "NCCL_DEBUG": "",
        }
        self.environment.pop("TRITON_INTERPRET", None)

    def call(self, *command: str, **variables: str) -> str:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def submit(self, script: str, runs: Path, *words: str) -> str:
        """Submit a job; its log lies beside the runs. Returns the job's number."""
        output = self.call(
            "sbatch",
            "--parsable",
            "--nodes=2",
            f"--output={runs.parent}/%x-%j.log",
            f"slurm/{script}.sh",
            *words,
            RUNS=str(runs),
        )
        return output.strip()

    def state(self, job: str) -> str:
        return re.search(r"JobState=(\S+)", self.call("scontrol", "show", "job", job)).group(1)

    def wait(self, job: str, *states: str, timeout: float = 180) -> None:
        self.wait_until(lambda: self.state(job) in states, job, timeout)

    def wait_until(self, is_so: Callable[[], object], job: str, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while not is_so():
            if time.monotonic() > deadline:
                queue = self.call("squeue", "-t", "all")
                raise AssertionError(f"{queue}\n{self.log(job)[-5000:]}")
            time.sleep(0.3)

    def log(self, job: str) -> str:
        return "".join(
            path.read_text(errors="replace") for path in self.home.glob(f"*/*-{job}.log")
        )

    def restarts(self, job: str) -> int:
        return int(re.search(r"Restarts=(\d+)", self.call("scontrol", "show", "job", job)).group(1))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    from ilrec.config.sections import ModelConfig
    from ilrec.model.loading import materialise

    if os.geteuid():
        pytest.skip("a SLURM of one's own needs root")
    place = Path(tempfile.mkdtemp(prefix="ilrec-slurm-"))
    # munged wants its socket in a place that everybody can reach.
    place.chmod(0o755)
    lab = Lab(place / "lab", tmp_path_factory.mktemp("my runs"))
    data, model = write_data(lab.home / "data"), lab.home / "model"
    materialise(ModelConfig(init=INIT), model, ["red blue guitar string amp pedal stand"], seed=0)
    lab.environment |= {"DATA": str(data), "MODEL": str(model)}
    try:
        lab.call("bash", str(HERE / "start.sh"))
        yield lab
    finally:
        # pytest keeps the logs for a while.
        shutil.copytree(lab.lab / "log", lab.home / "slurm", dirs_exist_ok=True)
        subprocess.run(["bash", str(HERE / "stop.sh")], env=lab.environment, check=False)
        place.rmdir()


@pytest.fixture
def runs(lab, request) -> Path:
    """RUNS of one test; its logs lie beside it."""
    directory = lab.home / request.node.name
    directory.mkdir()
    return directory / "runs"


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [line["step"] for line in found if "loss" in line]


def test_stages_and_ranking_follow_each_other(lab, runs):
    """submit.sh as a user calls it: two nodes, three jobs, and a ranking of every user at the
    end."""
    words = ["--nodes=2", f"--output={runs.parent}/%x-%j.log", "--", *FIELDS, "--max_steps", "4"]
    output = lab.call("slurm/submit.sh", *words, RUNS=str(runs))
    jobs = dict(re.findall(r"(\w+): job (\d+)", output))
    assert list(jobs) == ["stage1", "stage2", "rank"]
    lab.wait(jobs["rank"], "COMPLETED", "FAILED", "CANCELLED")
    logs = "".join(map(lab.log, jobs.values()))
    assert [lab.state(job) for job in jobs.values()] == ["COMPLETED"] * 3, logs[-5000:]
    assert json.loads((runs / "stage1/environment.json").read_text())["world_size"] == 2
    ranking = json.loads((runs / "stage2/final/ranking.json").read_text())
    assert ranking["protocol"]["num_users"] == 30


def test_a_stage_that_fails_stops_the_chain(lab, runs):
    words = ["--nodes=2", f"--output={runs.parent}/%x-%j.log", "--", "--learning_rate", "-1"]
    output = lab.call("slurm/submit.sh", *words, RUNS=str(runs))
    stage1, stage2, rank = re.findall(r"job (\d+)", output)
    lab.wait(rank, "CANCELLED")
    assert (lab.state(stage1), lab.state(stage2)) == ("FAILED", "CANCELLED")
    assert lab.restarts(stage1) == 0
    assert lab.log(stage1).count("learning_rate: expected a number, above 0, got '-1'") == 1
    assert not runs.exists() or not list(runs.glob("*/final"))


def test_preempted_it_goes_on_where_it_was(lab, runs):
    """A job of a higher partition wants the nodes. The run gets USR1, writes a checkpoint, goes
    back into the queue, and runs to its end later."""
    job = lab.submit("stage1", runs, *FIELDS, "--max_steps", "60", "--save_steps", "1000")
    lab.wait_until(lambda: len(steps(runs / "stage1")) >= 3, job)
    words = (
        "--partition=urgent",
        "--nodes=3",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 1",
    )
    urgent = lab.call("sbatch", "--parsable", *words).strip()
    lab.wait(urgent, "COMPLETED")
    assert "goes back into the queue after start 0" in lab.log(job)
    lab.wait(job, "COMPLETED", "FAILED")
    line = re.search(r"stopped after step (\d+) of 60; the same command goes on", lab.log(job))
    assert 3 <= int(line.group(1)) < 60
    assert lab.state(job) == "COMPLETED"
    assert lab.restarts(job) == 1
    assert steps(runs / "stage1") == list(range(1, 61)), "none lost, none twice"


def test_a_node_that_dies_does_not_end_the_run(lab, runs):
    """SIGKILL to everything on node2, slurmd too, in the middle of a step. The job goes on from its
    checkpoint on the third node."""
    job = lab.submit("stage1", runs, *FIELDS, "--max_steps", "40", "--save_steps", "10")
    lab.wait_until(lambda: len(steps(runs / "stage1")) >= 12, job)
    assert "NodeList=node[1-2]" in lab.call("scontrol", "show", "job", job)
    kill_node(2)
    lab.wait_until(lambda: lab.restarts(job) == 1, job, timeout=60)
    lab.wait(job, "COMPLETED", "FAILED")
    assert lab.state(job) == "COMPLETED", lab.log(job)[-5000:]
    assert "NodeList=node[1,3]" in lab.call("scontrol", "show", "job", job)
    assert steps(runs / "stage1") == list(range(1, 41)), "none lost, none twice"


def kill_node(number: int) -> None:
    """Kill every process in the node's network namespace."""
    listed = subprocess.run(
        ["ip", "netns", "pids", f"slab-node{number}"], capture_output=True, text=True, check=True
    ).stdout
    for pid in map(int, listed.split()):
        try:
            psutil.Process(pid).send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
