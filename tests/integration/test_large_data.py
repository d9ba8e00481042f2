"""Ten million interactions: prepared, trained on for some steps, and started again from the cache,
in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import INIT, launch

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.prepared import write_prepared
from ilrec.interactions.ragged import Ragged

pytestmark = pytest.mark.launch
NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS = 1_000_000, 100_000, 10_000_000
# What a rank may hold, torch, transformers and DeepSpeed included: about 0.7 GiB of it before any
# data.
MAX_RESIDENT_GIB = 2.0
MEASURE = """
import resource, sys
from ilrec.train import train
train(sys.argv[1:])
print("peak_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    lengths = 4 + rng.multinomial(
        NUM_INTERACTIONS - 4 * NUM_USERS, np.full(NUM_USERS, 1 / NUM_USERS)
    )
    sequences = Ragged.from_lengths(
        rng.integers(0, NUM_ITEMS, NUM_INTERACTIONS, dtype=np.int32), lengths
    )
    item_ids = [f"B{item:09d}" for item in range(NUM_ITEMS)]
    directory = tmp_path_factory.mktemp("large") / "data"
    user_ids = [f"U{user}" for user in range(NUM_USERS)]
    write_prepared(
        InteractionDataset("large", user_ids, item_ids, sequences, None, 0, ""), directory, {}
    )
    index = {
        name: [f"<a_{i % 50}>", f"<b_{i // 50 % 50}>", f"<c_{i // 2500}>"]
        for i, name in enumerate(item_ids)
    }
    (directory / "large.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("supervision", ["every_item", "last_item"])
def test_memory_does_not_grow_with_the_data(supervision: str, large: Path, tmp_path: Path):
    words = [
        "--config",
        "ilrec/recipes/quickstart.yaml",
        "--init",
        json.dumps(INIT),
        "--data",
        str(large),
        "--supervision",
        supervision,
        "--prompt_suffix",
        "",
        "--max_tokens_per_batch",
        "1024",
        "--max_steps",
        "2",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    result = launch("python", "-c", MEASURE, *words, PYTHONPATH=".")
    assert result.returncode == 0, result.stderr[-3000:]
    peak_gib = float(result.stdout.split("peak_gib")[1])
    assert 0.3 < peak_gib < MAX_RESIDENT_GIB
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
