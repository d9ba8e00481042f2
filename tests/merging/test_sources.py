"""What is merged and into what: directories that are no adapter, damage, and another base."""

from __future__ import annotations

import json
import shutil

import pytest
from written_adapters import refusal, write_adapter, write_base

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
