"""What --inspect prints of adapters, runs and merged models."""

from __future__ import annotations

import json
import shutil

import pytest
from written_adapters import VOCAB, edit_json, run_merge, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging.inspection import describe


@pytest.fixture
def adapter(tmp_path):
    tokens = [VOCAB, VOCAB + 1]
    write_adapter(
        write_base(tmp_path / "base"),
        tmp_path / "adapter",
        resize=VOCAB + 2,
        trainable_token_indices={"embed_tokens": tokens, "lm_head": tokens},
        rank_pattern={"q_proj": 2},
    )
    return tmp_path / "adapter"


def facts(block: str) -> dict[str, str]:
    """{name: value} of a block, whose first line is the directory."""
    pairs = {}
    for line in block.splitlines()[1:]:
        name, _, value = line.strip().partition("  ")
        pairs[name] = value.strip()
    return pairs


def test_an_adapter(adapter, tmp_path):
    printed = describe(adapter)
    assert printed.splitlines()[0] == str(adapter)
    found = facts(printed)
    # A and B of two down_proj [16, 24] with rank 4 and two q_proj [16, 16] with rank 2; the two
    # grown tables [42, 16], which were saved because they were resized; two rows of each.
    matrices = 2 * 4 * (16 + 24) + 2 * 2 * (16 + 16)
    tables = 2 * (VOCAB + 2) * 16 + 2 * 2 * 16
    assert found == {
        "kind": "LORA adapter",
        "base": str(tmp_path / "base"),
        "rank": "2, 4",
        "scaling": "2, 4",
        "targets": "4 matrices: down_proj, q_proj",
        "trained tokens": f"2 of lm_head.weight ({VOCAB} to {VOCAB + 1}); "
        f"2 of model.embed_tokens.weight ({VOCAB} to {VOCAB + 1})",
        "whole": "lm_head.weight, model.embed_tokens.weight",
        "parameters": f"{matrices + tables:,}",
        "stored as": "F32",
    }


def test_a_run_with_a_checkpoint(adapter, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "checkpoint-5")
    manifest = {"step": 5, "world_size": 2, "base": {"name": "the/base"}}
    (run / "checkpoint-5" / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.jsonl").write_text(
        '{"step": 4, "loss": 2.5, "grad_norm": 0.1}\n{"step": 6, "loss": 1.5}\n'
    )
    printed = describe(run)
    assert printed.splitlines()[0] == f"{run}/checkpoint-5"
    found = facts(printed)
    assert (found["step"], found["ranks"], found["trained on"]) == ("5", "2", "the/base")
    # Step 6 was logged after the checkpoint.
    assert found["metrics"] == "loss 2.5, grad_norm 0.1 (step 4)"


def test_the_models_of_a_run_come_in_its_order(adapter, tmp_path):
    run = tmp_path / "run"
    names = ["base", "checkpoint-9", "checkpoint-10", "final"]
    for name in reversed(names):
        source = tmp_path / "base" if name == "base" else adapter
        shutil.copytree(source, run / name)
    blocks = describe(run).split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [str(run / name) for name in names]


def test_a_merged_model(adapter, tmp_path):
    run_merge(adapter, tmp_path / "merged")
    found = facts(describe(tmp_path / "merged"))
    assert found["kind"] == "full model: LlamaForCausalLM"
    assert found["merged from"] == f"{adapter} on {tmp_path}/base"
    assert found["vocabulary"] == str(VOCAB + 2)


def test_nothing_there_and_what_cannot_be_merged(adapter, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        describe(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither adapter_config.json nor config.json"):
        describe(tmp_path / "empty")
    edit_json(adapter / "adapter_config.json", arrow_config={"x": 1})
    assert "arrow_config" in facts(describe(adapter))["not mergeable"]
