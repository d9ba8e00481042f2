"""A small world for the tests: 24 items, 30 users, a tiny Llama with a tokenizer, and commands that
are launched with real ranks."""

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
# No test may reach for a hub, nor read or fill the user's cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
CACHE = tempfile.TemporaryDirectory(prefix="ilrec-tests-")
os.environ["HF_HOME"] = CACHE.name
# Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Every run of the tests draws the same cases. Other cases, and more of them, are drawn with
# --hypothesis-profile fuzz --hypothesis-seed N (docs/log.md).
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
WORDS = ["red", "blue", "guitar", "string", "amp", "pedal", "stand"]


def write_data(directory: Path) -> Path:
    """LC-Rec files. Each user walks through the items in steps of one size; titles have one to
    three words and a number."""
    rng = random.Random(0)
    items, index = {}, {}
    for item in range(NUM_ITEMS):
        words = " ".join(rng.sample(WORDS, 1 + item % 3))
        items[str(item)] = {"title": f"{words} {item}"}
        index[str(item)] = [f"<a_{item % 3}>", f"<b_{item // 3 % 4}>", f"<c_{item // 12}>"]
    users = {}
    for user in range(NUM_USERS):
        step, num_steps = 1 + user % 3, 4 + user % 5
        users[str(user)] = [(user + step * number) % NUM_ITEMS for number in range(num_steps)]

    directory.mkdir(parents=True, exist_ok=True)
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


@pytest.fixture(scope="session")
def served(data, base, tmp_path_factory) -> Path:
    """The final/ of two steps of sft, an adapter, for tests that only read it."""
    from command_words import flags

    from ilrec.train import train

    run = tmp_path_factory.mktemp("served") / "run"
    recipe = ROOT / "ilrec/recipes/sft.yaml"
    train(flags(config=recipe, data=data, model=base, max_steps=2, output_dir=run))
    return run / "final"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Launches run last, so that what fails within seconds is known first."""
    items.sort(key=lambda item: item.get_closest_marker("launch") is not None)


@pytest.fixture(autouse=True)
def shared_memory() -> Iterator[None]:
    """Removes what a test left in /dev/shm: DeepSpeed's CPU collectives leave 66 MiB there for each
    rank of a run.

    What some process still has open belongs to another run, which would wait forever without it.
    """
    before = allreduce_buffers()
    yield
    left = allreduce_buffers() - before
    if left:
        in_use = mapped_paths()
        for path in left:
            if str(path) not in in_use:
                path.unlink(missing_ok=True)


def allreduce_buffers() -> set[Path]:
    return set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))


def mapped_paths() -> set[str]:
    """The files that are mapped into the memory of some process."""
    paths: set[str] = set()
    for process in psutil.process_iter():
        try:
            paths |= {mapped.path for mapped in process.memory_maps()}
        except psutil.Error:
            # The process has ended, or belongs to someone else.
            continue
    return paths


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(*command: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of the project as a user would, from its root.

    `torchrun` starts two ranks, and so does `deepspeed`, which takes 3 s longer.
    """
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
        # Port 0 lets torchrun find a free one.
        rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        words[1:1] = ["--nproc_per_node", "2", *rendezvous]

    # A user does not run Triton's interpreter, and has the environment's programs on the path.
    variables = dict(os.environ)
    variables.pop("TRITON_INTERPRET", None)
    variables["OMP_NUM_THREADS"] = "1"
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return words, variables | environment


TRITON_BACKENDS = ("row_kernel", "vocab_stream")


def backend_called(name: str, monkeypatch) -> str:
    """The backend's name for cross_layer_loss.

    row_kernel is row_slab with its Triton kernel, which runs in the interpreter on the CPU.
    """
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
    """Each backend with a Triton kernel."""
    return backend_called(request.param, monkeypatch)
