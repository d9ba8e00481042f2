"""Merging against peft's own merge_and_unload and the adapter's own forward, for every kind of adapter; what is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import VOCAB, logits, write_adapter, write_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source

NEW = list(range(VOCAB, VOCAB + 6))
# (name, tied, what peft is told). In both columns of the tied ones peft's forward is what counts.
KINDS = [
    ("plain", False, {}),
    ("all linear layers", False, {"target_modules": "all-linear"}),
    ("rank and alpha patterns, rank stabilised", False, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32},
                                                         "use_rslora": True}),
    ("DoRA", False, {"use_dora": True}),
    ("norms and head whole", False, {"modules_to_save": ["norm", "lm_head"]}),
    ("biases", False, {"bias": "all"}),
    ("low rank in embedding and head", False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ("some tokens' rows", False, {"trainable_token_indices": {"embed_tokens": [3, 30, 7], "lm_head": [5]}}),
    ("new tokens' rows", False, {"resize": VOCAB + 6, "trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}}),
    ("resized, embeddings saved", False, {"resize": VOCAB + 6}),
    ("resized to a padded size, embeddings trained", False, {"resize": VOCAB + 24, "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("tied: plain", True, {}),
    ("tied: new tokens' rows", True, {"resize": VOCAB + 6, "trainable_token_indices": NEW}),
    ("tied: some tokens' rows", True, {"trainable_token_indices": [3, 30]}),
    ("tied: resized, embeddings saved", True, {"resize": VOCAB + 6}),
    ("tied: head whole", True, {"modules_to_save": ["lm_head"]}),
    ("tied: embedding whole", True, {"modules_to_save": ["embed_tokens"]}),
    ("tied: embedding whole, kept tied", True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("tied: low rank in the head", True, {"target_modules": ["q_proj", "lm_head"]}),
    ("tied: low rank in the embedding", True, {"target_modules": ["q_proj", "embed_tokens"]}),
]
UNTIED = {"tied: head whole", "tied: embedding whole", "tied: low rank in the head", "tied: low rank in the embedding"}


def run_merge(adapter: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    with open_source(str(adapter)) as source:
        merge(source, output, **options)
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize(("name", "tied", "settings"), KINDS, ids=[kind[0] for kind in KINDS])
def test_every_kind_says_what_the_adapter_says(name, tied, settings, tmp_path):
    """The logits of the adapted model; where peft merges the same way (it writes a tied pair as one), its weights."""
    base = write_base(tmp_path / "base", tied)
    adapted = write_adapter(base, tmp_path / "adapter", **settings)
    weights = run_merge(tmp_path / "adapter", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    vocab = model.config.vocab_size
    assert vocab == settings.get("resize", VOCAB) == len(weights["model.embed_tokens.weight"])
    torch.testing.assert_close(logits(model, vocab), logits(adapted, vocab), rtol=1e-5, atol=1e-5)
    assert model.config.tie_word_embeddings == (tied and name not in UNTIED) == ("lm_head.weight" not in weights)
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
    adapted = write_adapter(base, tmp_path / "adapter", dtype=torch.bfloat16, target_modules="all-linear")
    weights, mine, theirs = run_merge(tmp_path / "adapter", tmp_path / "merged"), 0.0, 0.0
    exact = exact_sums(base, tmp_path / "adapter", scaling=2.0)
    peft = adapted.merge_and_unload().state_dict()
    for name, tensor in exact.items():
        assert weights[name].dtype == torch.bfloat16
        mine += (weights[name].double() - tensor).square().sum().item()
        theirs += (peft[name].double() - tensor).square().sum().item()
        # half a step of bfloat16, and what float32 leaves
        assert ((weights[name].double() - tensor).abs() <= tensor.abs() * 2**-8 * 1.0001 + 1e-6).all(), name
    assert len(exact) == 14 and mine <= theirs


def exact_sums(base: Path, adapter: Path, scaling: float) -> dict[str, torch.Tensor]:
    start, factors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    sums = {}
    for key, a in factors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            sums[name] = start[name].double() + scaling * factors[key.replace("lora_A", "lora_B")].double() @ a.double()
    return sums
