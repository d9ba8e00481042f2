"""Merging every kind of adapter, against the logits of the adapted model and peft's own
merge_and_unload; and what a merge leaves behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from adapter_kinds import KINDS, UNTIED
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from written_adapters import VOCAB, logits, run_merge, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging import rows
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.weights import tensor_writer


@pytest.mark.parametrize(("name", "tied", "settings"), KINDS, ids=[kind[0] for kind in KINDS])
def test_every_kind_computes_what_the_adapter_computes(name, tied, settings, tmp_path):
    base = write_base(tmp_path / "base", tied)
    adapted = write_adapter(base, tmp_path / "adapter", **settings)
    weights = run_merge(tmp_path / "adapter", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    vocab = model.config.vocab_size
    assert vocab == settings.get("resize", VOCAB) == len(weights["model.embed_tokens.weight"])
    torch.testing.assert_close(logits(model, vocab), logits(adapted, vocab), rtol=1e-5, atol=1e-5)
    is_tied = tied and name not in UNTIED
    assert model.config.tie_word_embeddings == is_tied
    assert ("lm_head.weight" not in weights) == is_tied

    # peft's own merge writes a tied pair as one tensor, also where its forward had two.
    if name not in UNTIED:
        expected = adapted.merge_and_unload().state_dict()
        for key, tensor in weights.items():
            assert_within_one_step(tensor, expected[key], key)


def assert_within_one_step(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """At most one unit in the last place, of the larger of the terms that were added."""
    step = torch.finfo(actual.dtype).eps * torch.maximum(expected.abs(), torch.ones(()))
    assert ((actual - expected).abs() <= step).all(), name


def test_bfloat16_is_nearer_to_the_exact_sum_than_peft(tmp_path):
    """Base and adapter in bfloat16. The oracle is the sum in float64: each value may be half a step
    of bfloat16 away from it, because it is rounded once."""
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    adapted = write_adapter(
        base, tmp_path / "adapter", dtype=torch.bfloat16, target_modules="all-linear"
    )
    weights = run_merge(tmp_path / "adapter", tmp_path / "merged")
    exact = exact_sums(base, tmp_path / "adapter", scaling=2.0)
    peft = adapted.merge_and_unload().state_dict()
    our_squares = their_squares = 0.0
    for name, tensor in exact.items():
        assert weights[name].dtype == torch.bfloat16
        our_error = (weights[name].double() - tensor).abs()
        their_error = (peft[name].double() - tensor).abs()
        our_squares += our_error.square().sum().item()
        their_squares += their_error.square().sum().item()
        # 2^-8 is half a step. The rest is what the sum in float32 may be off.
        assert (our_error <= tensor.abs() * 2**-8 * 1.0001 + 1e-6).all(), name
    assert len(exact) == 14  # seven matrices in each of two layers
    assert our_squares <= their_squares


def exact_sums(base: Path, adapter: Path, scaling: float) -> dict[str, torch.Tensor]:
    """{name: W + scaling B A in float64} of the matrices that the adapter changes."""
    start = load_file(base / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    sums = {}
    for key, a in factors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            b = factors[key.replace("lora_A", "lora_B")]
            sums[name] = start[name].double() + scaling * b.double() @ a.double()
    return sums


def test_what_lies_beside_the_weights(tmp_path):
    """The base's generation config has a temperature, which must not come along."""
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "item_index.json").write_text("{}")
    assert json.loads((base / "generation_config.json").read_text())["temperature"] == 0.6
    merged = tmp_path / "merged"
    run_merge(tmp_path / "adapter", merged, dtype="bfloat16")

    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.dtype == torch.bfloat16
    generation = model.generation_config
    assert not generation.do_sample
    assert generation.temperature is None
    assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
    assert len(AutoTokenizer.from_pretrained(merged)) == VOCAB
    assert (merged / "item_index.json").exists()

    record = json.loads((merged / "MERGE.json").read_text())
    for side, name in (
        ("base", "model.safetensors"),
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "adapter_config.json"),
    ):
        content = (tmp_path / side / name).read_bytes()
        assert record[side]["files"][name] == hashlib.sha256(content).hexdigest()
    assert record["tensors_by_scaling"] == {"2": 4}
    assert record["dtypes"] == ["BF16"]


def test_shards_blocks_and_workers_make_the_same_model(tmp_path, monkeypatch):
    """A base in shards, merged into shards by four threads, against the same in one file by one
    thread. Blocks of another size may sum in another order: within one step."""
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    whole = run_merge(tmp_path / "adapter", tmp_path / "whole", workers=1)

    model = LlamaForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    monkeypatch.setattr(rows, "BLOCK_BYTES", 256)
    monkeypatch.setattr(tensor_writer, "MAX_SHARD_BYTES", 3000)
    with open_source(str(tmp_path / "adapter"), str(tmp_path / "sharded")) as source:
        merge(source, tmp_path / "merged", workers=4)

    files = sorted((tmp_path / "merged").glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    merged = {}
    for file in files:
        merged |= load_file(file)
    assert merged.keys() == whole.keys()
    for name, tensor in whole.items():
        assert_within_one_step(merged[name], tensor, name)
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_full_output_is_left_alone_and_an_interrupted_one_replaced(tmp_path):
    adapter = tmp_path / "adapter"
    write_adapter(write_base(tmp_path / "base"), adapter)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes").touch()
    with pytest.raises(InputError, match="exists already; expected a new or an empty directory"):
        run_merge(adapter, tmp_path / "merged")
    (tmp_path / "merged" / "notes").unlink()
    # What a merge that was killed has left.
    (tmp_path / "merged.tmp").mkdir()
    (tmp_path / "merged.tmp" / "model-00001-of-00009.safetensors").touch()
    run_merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged.tmp").exists()
    assert not list((tmp_path / "merged").glob("*-of-*"))
