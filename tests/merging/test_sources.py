"""What is merged and into what: directories that are no adapter, damage, and another base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from written_adapters import refusal, run_merge, write_adapter, write_base

from ilrec.merging import sources
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.weights.fingerprint import weights_fingerprint


@pytest.fixture
def adapter(tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_not_an_adapter(adapter, tmp_path):
    output = tmp_path / "merged"
    assert "base is a full model, there is nothing to merge" in refusal(tmp_path / "base", output)
    assert "no such directory" in refusal(tmp_path / "gone", output)
    (tmp_path / "run").mkdir()
    assert "expected final/ or checkpoint-N" in refusal(tmp_path / "run", output)
    shutil.copytree(adapter, tmp_path / "run" / "final")
    assert f"did you mean {tmp_path}/run/final?" in refusal(tmp_path / "run", output)


def test_an_adapter_without_its_weights(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    message = refusal(adapter, tmp_path / "merged")
    assert "neither adapter_model.safetensors nor DeepSpeed's shards" in message


def test_a_base_of_the_same_shape_is_told_by_its_fingerprint(adapter, tmp_path):
    other = write_base(tmp_path / "other", seed=5)
    facts = {
        "files": {},
        "base": {"name": "the/base", "weights": weights_fingerprint(tmp_path / "base")},
    }
    (adapter / "manifest.json").write_text(json.dumps(facts))
    message = refusal(adapter, tmp_path / "merged", str(other))
    assert "was trained on the/base, whose weights are others than those in" in message
    assert str(other) in message
    # The right base may have moved.
    moved = shutil.move(tmp_path / "base", tmp_path / "moved")
    with open_source(str(adapter), str(moved)) as source:
        merge(source, tmp_path / "merged")


def test_a_damaged_checkpoint_is_told_by_its_manifest(adapter, tmp_path):
    files = {"adapter_config.json": {"size": 1, "sha256": "0"}}
    (adapter / "manifest.json").write_text(json.dumps({"files": files}))
    assert "adapter_config.json has" in refusal(adapter, tmp_path / "merged")


@pytest.mark.parametrize("empty_file", [True, False])
def test_an_adapter_in_shards_is_put_together_for_the_time_of_the_merge(
    empty_file, adapter, tmp_path, monkeypatch
):
    """As ZeRO-3 leaves a checkpoint without gathering: no tensors, or no file of them, and shards.

    tests/integration/test_two_ranks.py puts real shards together.
    """
    run_merge(adapter, tmp_path / "expected")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    if empty_file:
        save_file({}, weights)
    (adapter / "latest").write_text("global_step3")

    def consolidate(checkpoint: Path, target: Path) -> None:
        assert checkpoint == adapter
        (target / weights.name).write_bytes(whole)

    monkeypatch.setattr(sources, "consolidate", consolidate)
    with open_source(str(adapter)) as source:
        merge(source, tmp_path / "merged")
    assert not source.weights.exists()
    merged = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "expected" / "model.safetensors").read_bytes()
