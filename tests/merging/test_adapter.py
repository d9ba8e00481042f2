"""Adapters that cannot be read: unknown settings, damaged or missing tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from written_adapters import HIDDEN, edit_json, refusal, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging.adapter import read_adapter


@pytest.fixture
def adapter(tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_settings_that_are_not_known_are_refused_by_name(adapter, tmp_path):
    config = adapter / "adapter_config.json"
    whole = config.read_text()
    for fields, message in (
        ({"peft_type": "IA3"}, "expected LORA, got 'IA3'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation"),
        ({"some_new_setting": "on"}, "some_new_setting = on"),
        ({"init_lora_weights": "pissa"}, "changes its base"),
        ({"r": 3}, "expected rank 3"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ):
        edit_json(config, **fields)
        assert message in refusal(adapter, tmp_path / "merged")
        config.write_text(whole)


def test_damaged_adapters(adapter, tmp_path):
    output = tmp_path / "merged"
    path = adapter / "adapter_model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-10])
    assert "truncated or damaged" in refusal(adapter, output)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    not_a_number = torch.full((4, HIDDEN), float("nan"))
    for changed, message in (
        ({name: None}, "has lora_B.weight alone"),
        ({"stray": torch.ones(2)}, "stray is not a known tensor of a LoRA adapter"),
        ({name: not_a_number}, "NaN or inf in rows 0 to 15, in the adapter"),
        ({name: tensors[name].to(torch.int32)}, "stored as I32"),
    ):
        written = {**tensors, **changed}
        if written[name] is None:
            del written[name]
        save_file(written, path)
        assert message in refusal(adapter, output)


def test_token_rows_and_their_numbers_have_to_be_as_many(tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", trainable_token_indices={"embed_tokens": [3, 30]})
    edit_json(
        tmp_path / "adapter" / "adapter_config.json", trainable_token_indices={"embed_tokens": [3]}
    )
    with pytest.raises(InputError, match=r"has 2 rows, trainable_token_indices .* names 1 for"):
        read_adapter(tmp_path / "adapter")


def test_dora_on_an_embedding_is_refused(tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", use_dora=True, target_modules=["embed_tokens"])
    with pytest.raises(InputError, match="embed_tokens: DoRA on an embedding is not merged here"):
        read_adapter(tmp_path / "adapter")
