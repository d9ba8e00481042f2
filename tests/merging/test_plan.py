"""Bases that an adapter does not fit."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from written_adapters import HIDDEN, VOCAB, refusal, write_adapter, write_base


@pytest.mark.parametrize("other", [{"hidden_size": 32}, {"num_hidden_layers": 1}])
def test_a_base_of_another_shape_is_refused_with_both_named(other, tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
    }
    LlamaForCausalLM(LlamaConfig(**config | other)).save_pretrained(tmp_path / "other")
    message = refusal(tmp_path / "adapter", tmp_path / "merged", base=str(tmp_path / "other"))
    assert "made for another base" in message
    assert str(tmp_path / "other") in message and str(tmp_path / "base") in message


def test_new_tokens_without_values_are_refused(tmp_path):
    """The adapter was made on a resized base that was not saved. Its trained rows have values, the
    other new rows have none."""
    base = write_base(tmp_path / "base")
    write_adapter(
        base,
        tmp_path / "adapter",
        resize=VOCAB + 4,
        trainable_token_indices={"embed_tokens": [VOCAB, VOCAB + 3]},
    )
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {}
    for name, tensor in load_file(path).items():
        if "base_layer" not in name and "lm_head" not in name:
            kept[name] = tensor
    save_file(kept, path)
    expected = f"of model.embed_tokens.weight, 2 rows (first: {VOCAB + 1}) are neither in the base"
    assert expected in refusal(tmp_path / "adapter", tmp_path / "merged")
