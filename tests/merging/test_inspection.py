"""What --inspect says of adapters, runs and merged models."""

from __future__ import annotations

import json
import shutil

import pytest
from test_merge import run_merge
from written_adapters import VOCAB, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging.inspection import describe


@pytest.fixture
def adapter(tmp_path):
    tokens = {"embed_tokens": [VOCAB, VOCAB + 1], "lm_head": [VOCAB, VOCAB + 1]}
    write_adapter(
        write_base(tmp_path / "base"),
        tmp_path / "adapter",
        resize=VOCAB + 2,
        trainable_token_indices=tokens,
        rank_pattern={"q_proj": 2},
    )
    return tmp_path / "adapter"


def test_an_adapter(adapter, tmp_path):
    said = describe(adapter)
    for words in (
        "LORA adapter",
        str(tmp_path / "base"),
        "2, 4",
        "4 matrices: down_proj, q_proj",
        f"({VOCAB} to {VOCAB + 1})",
        "F32",
    ):
        assert words in said


def test_a_run_with_a_checkpoint(adapter, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "checkpoint-5")
    (run / "checkpoint-5" / "manifest.json").write_text(
        json.dumps({"step": 5, "world_size": 2, "base": {"name": "the/base"}})
    )
    (run / "metrics.jsonl").write_text(
        '{"step": 4, "loss": 2.5, "grad_norm": 0.1}\n{"step": 6, "loss": 1.5}\n'
    )
    said = describe(run)
    for words in (
        f"{run}/checkpoint-5",
        "step            5",
        "ranks           2",
        "the/base",
        "loss 2.5, grad_norm 0.1 (step 4)",
    ):
        assert words in said
    assert "1.5" not in said


def test_a_merged_model(adapter, tmp_path):
    run_merge(adapter, tmp_path / "merged")
    said = describe(tmp_path / "merged")
    assert (
        "full model: LlamaForCausalLM" in said
        and f"{adapter} on {tmp_path}/base" in said
        and str(VOCAB + 2) in said
    )


def test_nothing_there_and_what_cannot_be_merged(adapter, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        describe(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither adapter_config.json nor config.json"):
        describe(tmp_path / "empty")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arrow_config": {"x": 1}}))
    assert "not mergeable" in describe(adapter) and "arrow_config" in describe(adapter)
