"""A tiny world for the tests: 24 items, 30 users, a tiny Llama with a tokenizer, one launch of real
ranks."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import psutil
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
CACHE = tempfile.TemporaryDirectory(prefix="ilrec-tests-")
os.environ["HF_HOME"] = CACHE.name  # nor read or fill the user's cache
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

# Every run of the tests draws the same cases. Others, and more: --hypothesis-profile fuzz
# --hypothesis-seed N (docs/log.md).
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=60, database=None
)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=500, database=None)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
NUM_ITEMS, NUM_USERS = 24, 30
INIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 270,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}


def write_data(directory: Path) -> Path:
    """LC-Rec files: users walk through the items in steps of their own; titles of one to three
    words."""
    rng = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    words = ["red", "blue", "guitar", "string", "amp", "pedal", "stand"]
    items = {
        str(i): {"title": f"{' '.join(rng.sample(words, 1 + i % 3))} {i}"} for i in range(NUM_ITEMS)
    }
    index = {
        str(i): [f"<a_{i % 3}>", f"<b_{i // 3 % 4}>", f"<c_{i // 12}>"] for i in range(NUM_ITEMS)
    }
    users = {
        str(u): [(u + step * (1 + u % 3)) % NUM_ITEMS for step in range(4 + u % 5)]
        for u in range(NUM_USERS)
    }
    for name, content in (("inter", users), ("item", items), ("index", index)):
        (directory / f"tiny.{name}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A model directory, made from scratch as `init:` makes it, without item tokens."""
    from ilrec.config.sections import ModelConfig
    from ilrec.model.loading import materialise

    directory = tmp_path_factory.mktemp("models") / "base"
    texts = ["The user has interacted with these items", "red blue guitar string amp pedal stand"]
    materialise(ModelConfig(init=INIT), directory, texts, seed=0)
    return directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Launches last: what fails within seconds is known first."""
    items.sort(key=lambda item: item.get_closest_marker("launch") is not None)


def mapped_files(process: psutil.Process) -> list:
    try:
        return process.memory_maps()
    except psutil.Error:  # it has ended, or is not ours
        return []


@pytest.fixture(autouse=True)
def shared_memory() -> Iterator[None]:
    """DeepSpeed's CPU collectives leave 66 MiB for each rank of a run in /dev/shm: what a test left
    is removed.

    What a process still has open is another run's, which would wait forever without it.
    """

    def buffers() -> set[Path]:
        return set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))

    before = buffers()
    yield
    left = buffers() - before
    if left:
        in_use = {
            place.path for process in psutil.process_iter() for place in mapped_files(process)
        }
        for path in left:
            if str(path) not in in_use:
                path.unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(*command: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of the project as a user would, from its root. `torchrun`, and 3 s slower
    `deepspeed`, start two ranks."""
    words, variables = as_user(command, environment)
    return subprocess.run(
        words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout
    )


def as_user(
    command: Sequence[str], environment: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """(words, environment) of such a command."""
    words = list(command)
    if words[0] == "python":
        words[0] = sys.executable
    if words[0] == "deepspeed":
        words[1:1] = ["--num_gpus", "2", "--master_port", str(free_port())]
    if words[0] == "torchrun":
        words[1:1] = [
            "--nproc_per_node",
            "2",
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            "localhost:0",
        ]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables = {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment,
    }
    return words, variables


TRITON_BACKENDS = ("row_kernel", "vocab_stream")


def backend_called(name: str, monkeypatch) -> str:
    """What to give to cross_layer_loss. row_kernel: row_slab with its Triton kernel, which on the
    CPU runs in the interpreter."""
    from ilrec.ops import row_slab

    if name in TRITON_BACKENDS:
        pytest.importorskip("triton")
    if name == "row_kernel":
        monkeypatch.setattr(row_slab, "uses_kernel", lambda states: True)
        return "row_slab"
    return name


@pytest.fixture(params=["row_slab", *TRITON_BACKENDS])
def backend(request, monkeypatch) -> str:
    """Each fused backend."""
    return backend_called(request.param, monkeypatch)


@pytest.fixture(params=TRITON_BACKENDS)
def triton_backend(request, monkeypatch) -> str:
    return backend_called(request.param, monkeypatch)
