"""Merging against peft's own merge_and_unload and the adapter's own forward, for every kind of
adapter; what is left of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from written_adapters import VOCAB, logits, write_adapter, write_base

from ilrec.merging import rows
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.weights import tensor_writer

NEW = list(range(VOCAB, VOCAB + 6))
# (name, tied, what peft is told). In both columns of the tied ones peft's forward is what counts.
KINDS = [
    ("plain", False, {}),
    ("all linear layers", False, {"target_modules": "all-linear"}),
    (
        "rank and alpha patterns, rank stabilised",
        False,
        {
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 32},
            "use_rslora": True,
        },
    ),
    ("DoRA", False, {"use_dora": True}),
    ("norms and head whole", False, {"modules_to_save": ["norm", "lm_head"]}),
    ("biases", False, {"bias": "all"}),
    (
        "low rank in embedding and head",
        False,
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    (
        "some tokens' rows",
        False,
        {"trainable_token_indices": {"embed_tokens": [3, 30, 7], "lm_head": [5]}},
    ),
    (
        "new tokens' rows",
        False,
        {"resize": VOCAB + 6, "trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}},
    ),
    ("resized, embeddings saved", False, {"resize": VOCAB + 6}),
    (
        "resized to a padded size, embeddings trained",
        False,
        {"resize": VOCAB + 24, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    ("tied: plain", True, {}),
    ("tied: new tokens' rows", True, {"resize": VOCAB + 6, "trainable_token_indices": NEW}),
    ("tied: some tokens' rows", True, {"trainable_token_indices": [3, 30]}),
    ("tied: resized, embeddings saved", True, {"resize": VOCAB + 6}),
    ("tied: head whole", True, {"modules_to_save": ["lm_head"]}),
    ("tied: embedding whole", True, {"modules_to_save": ["embed_tokens"]}),
    (
        "tied: embedding whole, kept tied",
        True,
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    ("tied: low rank in the head", True, {"target_modules": ["q_proj", "lm_head"]}),
    ("tied: low rank in the embedding", True, {"target_modules": ["q_proj", "embed_tokens"]}),
]
UNTIED = {
    "tied: head whole",
    "tied: embedding whole",
    "tied: low rank in the head",
    "tied: low rank in the embedding",
}


def run_merge(adapter: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    with open_source(str(adapter)) as source:
        merge(source, output, **options)
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize(("name", "tied", "settings"), KINDS, ids=[kind[0] for kind in KINDS])
def test_every_kind_says_what_the_adapter_says(name, tied, settings, tmp_path):
    """The logits of the adapted model; where peft merges the same way (it writes a tied pair as
    one), its weights."""
    base = write_base(tmp_path / "base", tied)
    adapted = write_adapter(base, tmp_path / "adapter", **settings)
    weights = run_merge(tmp_path / "adapter", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    vocab = model.config.vocab_size
    assert vocab == settings.get("resize", VOCAB) == len(weights["model.embed_tokens.weight"])
    torch.testing.assert_close(logits(model, vocab), logits(adapted, vocab), rtol=1e-5, atol=1e-5)
    assert (
        model.config.tie_word_embeddings
        == (tied and name not in UNTIED)
        == ("lm_head.weight" not in weights)
    )
    if name not in UNTIED:
        expected = adapted.merge_and_unload().state_dict()
        for key, tensor in weights.items():
            assert_within_one_step(tensor, expected[key], key)


def assert_within_one_step(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """At most one unit in the last place, of the larger of the terms that were added."""
    step = torch.finfo(actual.dtype).eps * torch.maximum(expected.abs(), torch.ones(()))
    assert ((actual - expected).abs() <= step).all(), name


def test_bfloat16_is_nearer_to_the_exact_sum_than_peft(tmp_path):
    """Base and adapter in bfloat16: the float64 sum, rounded once."""
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = write_adapter(
        base, tmp_path / "adapter", dtype=torch.bfloat16, target_modules="all-linear"
    )
    weights, mine, theirs = run_merge(tmp_path / "adapter", tmp_path / "merged"), 0.0, 0.0
    exact = exact_sums(base, tmp_path / "adapter", scaling=2.0)
    peft = adapted.merge_and_unload().state_dict()
    for name, tensor in exact.items():
        assert weights[name].dtype == torch.bfloat16
        mine += (weights[name].double() - tensor).square().sum().item()
        theirs += (peft[name].double() - tensor).square().sum().item()
        # half a step of bfloat16, and what float32 leaves
        assert (
            (weights[name].double() - tensor).abs() <= tensor.abs() * 2**-8 * 1.0001 + 1e-6
        ).all(), name
    assert len(exact) == 14 and mine <= theirs


def exact_sums(base: Path, adapter: Path, scaling: float) -> dict[str, torch.Tensor]:
    start, factors = (
        load_file(base / "model.safetensors"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    sums = {}
    for key, a in factors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            sums[name] = (
                start[name].double()
                + scaling * factors[key.replace("lora_A", "lora_B")].double() @ a.double()
            )
    return sums


def test_what_lies_beside_the_weights(tmp_path):
    """Tokenizer, no sampling left over, hashes of all that was read; and the precision that was
    asked for."""
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "item_index.json").write_text("{}")
    assert json.loads((base / "generation_config.json").read_text())["temperature"] == 0.6
    run_merge(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (
        model.dtype == torch.bfloat16
        and not model.generation_config.do_sample
        and model.generation_config.temperature is None
    )
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert (
        len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == VOCAB
        and (tmp_path / "merged" / "item_index.json").exists()
    )
    record = json.loads((tmp_path / "merged" / "MERGE.json").read_text())
    for side, name in (
        ("base", "model.safetensors"),
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "adapter_config.json"),
    ):
        assert (
            record[side]["files"][name]
            == hashlib.sha256((tmp_path / side / name).read_bytes()).hexdigest()
        )
    assert record["tensors_by_scaling"] == {"2": 4} and record["dtypes"] == ["BF16"]


def test_shards_blocks_and_workers_make_the_same_model(tmp_path, monkeypatch):
    """A base in shards, written in shards, by four threads. Blocks of another size may sum in
    another order: within one step."""
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    whole = run_merge(tmp_path / "adapter", tmp_path / "whole", workers=1)
    LlamaForCausalLM.from_pretrained(base).save_pretrained(
        tmp_path / "sharded", max_shard_size="4KB"
    )
    monkeypatch.setattr(rows, "BLOCK_BYTES", 256)
    monkeypatch.setattr(tensor_writer, "MAX_SHARD_BYTES", 3000)
    with open_source(str(tmp_path / "adapter"), str(tmp_path / "sharded")) as source:
        merge(source, tmp_path / "merged", workers=4)
    files = sorted((tmp_path / "merged").glob("model-*-of-*.safetensors"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1 and len(files) > 3
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert merged.keys() == whole.keys()
    for name, tensor in whole.items():
        assert_within_one_step(merged[name], tensor, name)
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
