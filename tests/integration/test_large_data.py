"""Ten million interactions: training starts and runs in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_words import flags
from conftest import INIT, launch

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.prepared import write_prepared
from ilrec.interactions.ragged import Ragged

pytestmark = pytest.mark.launch
NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS = 1_000_000, 100_000, 10_000_000
# What a rank may hold in memory. About 0.7 GiB of it are torch, transformers and DeepSpeed.
MAX_RESIDENT_GIB = 2.0
MEASURE = """
import resource, sys
from ilrec.train import train
train(sys.argv[1:])
print("peak_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Prepared data: every user has four random items or more."""
    rng = np.random.default_rng(0)
    spare = NUM_INTERACTIONS - 4 * NUM_USERS
    lengths = 4 + rng.multinomial(spare, np.full(NUM_USERS, 1 / NUM_USERS))
    items = rng.integers(0, NUM_ITEMS, NUM_INTERACTIONS, dtype=np.int32)
    sequences = Ragged.from_lengths(items, lengths)
    item_ids = [f"B{item:09d}" for item in range(NUM_ITEMS)]
    user_ids = [f"U{user}" for user in range(NUM_USERS)]
    dataset = InteractionDataset("large", user_ids, item_ids, sequences, None, 0, "")
    directory = tmp_path_factory.mktemp("large") / "data"
    write_prepared(dataset, directory, {})

    index = {}
    for i, name in enumerate(item_ids):
        index[name] = [f"<a_{i % 50}>", f"<b_{i // 50 % 50}>", f"<c_{i // 2500}>"]
    (directory / "large.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize("supervision", ["every_item", "last_item"])
def test_memory_does_not_grow_with_the_data(supervision: str, large: Path, tmp_path: Path):
    words = flags(
        config="ilrec/recipes/quickstart.yaml",
        init=json.dumps(INIT),
        data=large,
        supervision=supervision,
        prompt_suffix="",
        max_tokens_per_batch=1024,
        max_steps=2,
        output_dir=tmp_path / "run",
    )
    result = launch("python", "-c", MEASURE, *words, PYTHONPATH=".")
    assert result.returncode == 0, result.stderr[-3000:]
    peak_gib = float(result.stdout.split("peak_gib")[1])
    assert 0.3 < peak_gib < MAX_RESIDENT_GIB
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
