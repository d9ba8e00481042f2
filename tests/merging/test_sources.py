"""What is merged, and into what: a wrong base, damage and halves are refused with one message each;
shards are put together."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_merge import run_merge
from written_adapters import HIDDEN, VOCAB, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.weights.fingerprint import weights_fingerprint


@pytest.fixture
def adapter(tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(adapter, tmp_path, base: str = "", **options) -> str:
    """The message, and nothing is written."""
    with pytest.raises(InputError) as raised, open_source(str(adapter), base) as source:
        merge(source, tmp_path / "merged", **options)
    assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.tmp").exists()
    return str(raised.value)


def edit(path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_not_an_adapter(adapter, tmp_path):
    assert "base is a full model, there is nothing to merge" in refusal(tmp_path / "base", tmp_path)
    assert "no such directory" in refusal(tmp_path / "gone", tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copytree(adapter, tmp_path / "run" / "final")
    assert f"did you mean {tmp_path}/run/final?" in refusal(tmp_path / "run", tmp_path)


def test_a_base_of_another_shape_is_refused_with_both_named(adapter, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, fields in (("wider", {"hidden_size": 32}), ("shallower", {"num_hidden_layers": 1})):
        config = {
            "hidden_size": HIDDEN,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": VOCAB,
        }
        LlamaForCausalLM(LlamaConfig(**config | fields)).save_pretrained(tmp_path / name)
        message = refusal(adapter, tmp_path, str(tmp_path / name))
        assert (
            str(tmp_path / name) in message
            and str(tmp_path / "base") in message
            and "made for another base" in message
        )


def test_a_base_of_the_same_shape_is_told_by_its_fingerprint(adapter, tmp_path):
    other = write_base(tmp_path / "other", seed=5)
    facts = {
        "files": {},
        "base": {"name": "the/base", "weights": weights_fingerprint(tmp_path / "base")},
    }
    (adapter / "manifest.json").write_text(json.dumps(facts))
    message = refusal(adapter, tmp_path, str(other))
    assert (
        "was trained on the/base, whose weights are others than those in" in message
        and str(other) in message
    )
    moved = shutil.move(tmp_path / "base", tmp_path / "moved")
    with open_source(str(adapter), str(moved)) as source:
        merge(source, tmp_path / "merged")


def test_new_tokens_without_values_are_refused(tmp_path):
    """The adapter was made on a resized base: rows that were trained are there, others are not."""
    base = write_base(tmp_path / "base")
    write_adapter(
        base,
        tmp_path / "adapter",
        resize=VOCAB + 4,
        trainable_token_indices={"embed_tokens": [VOCAB, VOCAB + 3]},
    )
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "base_layer" not in n and "lm_head" not in n},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    message = refusal(tmp_path / "adapter", tmp_path)
    assert (
        f"of model.embed_tokens.weight, 2 rows (first: {VOCAB + 1}) are neither in the base"
        in message
    )


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
        edit(config, **fields)
        assert message in refusal(adapter, tmp_path)
        config.write_text(whole)


def test_damaged_adapters(adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-10])
    assert "truncated or damaged" in refusal(adapter, tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, message in (
        ({name: None}, "has lora_B.weight alone"),
        ({"stray": torch.ones(2)}, "stray is not a known tensor of a LoRA adapter"),
        (
            {name: torch.full((4, HIDDEN), float("nan"))},
            "NaN or inf in rows 0 to 15, in the adapter",
        ),
        ({name: tensors[name].to(torch.int32)}, "stored as I32"),
    ):
        save_file({n: t for n, t in (tensors | changed).items() if t is not None}, path)
        assert message in refusal(adapter, tmp_path)
    path.unlink()
    assert "neither adapter_model.safetensors nor DeepSpeed's shards" in refusal(adapter, tmp_path)


def test_values_that_the_written_precision_cannot_hold(adapter, tmp_path):
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][2] = 1e6
    save_file(tensors, path)
    assert "model.norm.weight: NaN or inf in rows 0 to 15, once written as F16" in refusal(
        adapter, tmp_path, dtype="float16"
    )
    tensors["model.norm.weight"][2] = float("inf")
    save_file(tensors, path)
    assert f"as stored in {path}" in refusal(adapter, tmp_path)


def test_a_base_that_lacks_tensors(adapter, tmp_path):
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    for start, promised in (("lm_head", "lm_head.weight"), ("model.layers.1.", "layer 1 of 2")):
        save_file(
            {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}, path
        )
        assert f"incomplete: config.json promises {promised}, no file has it" in refusal(
            adapter, tmp_path
        )


def test_a_damaged_checkpoint_is_told_by_its_manifest(adapter, tmp_path):
    (adapter / "manifest.json").write_text(
        json.dumps({"files": {"adapter_config.json": {"size": 1, "sha256": "0"}}})
    )
    assert "adapter_config.json has" in refusal(adapter, tmp_path)


def test_a_tokenizer_with_more_tokens_than_rows(adapter, tmp_path):
    from written_adapters import write_tokenizer

    write_tokenizer(adapter, VOCAB + 1)
    assert (
        f"has tokens up to number {VOCAB}, the merged model has rows for {VOCAB} tokens"
        in refusal(adapter, tmp_path)
    )


def test_full_output_is_left_alone_and_an_interrupted_one_replaced(adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes").touch()
    with pytest.raises(InputError, match="exists already; expected a new or an empty directory"):
        run_merge(adapter, tmp_path / "merged")
    (tmp_path / "merged" / "notes").unlink()
    (tmp_path / "merged.tmp").mkdir()
    (tmp_path / "merged.tmp" / "model-00001-of-00009.safetensors").touch()
    run_merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged.tmp").exists() and not list((tmp_path / "merged").glob("*-of-*"))
