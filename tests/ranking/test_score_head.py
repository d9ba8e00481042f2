"""Logits for ranking: float32 from the model's own states and weights, whatever wraps the head."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import NEW_TOKENS
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec.ranking.score_head import score_in_float32

IDS = torch.arange(12)[None] % 50


def make_model(kind: str, dtype: torch.dtype):
    """Wide enough for logits of some size. kind "token rows": with the rows that training adds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=2000,
        tie_word_embeddings=kind == "tied",
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    if kind == "token rows":
        adapter = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules="all-linear",
            trainable_token_indices={"embed_tokens": NEW_TOKENS, "lm_head": NEW_TOKENS},
        )
        model = get_peft_model(model, adapter)
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ["untied", "tied", "token rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@torch.inference_mode()
def test_logits_are_the_exact_product_of_states_and_weights(kind, dtype):
    model = make_model(kind, dtype)
    plain = copy.deepcopy(model)
    score_in_float32(model)
    logits = model(IDS, logits_to_keep=3).logits
    base = plain.get_base_model() if kind == "token rows" else plain
    hidden = base.get_decoder()(IDS)[0][:, -3:]
    if kind == "token rows":
        weight = base.lm_head.token_adapter.get_merged_weights(["default"])
    else:
        weight = base.get_output_embeddings().weight
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    assert logits.shape == (1, 3, 2000)
    exact = hidden.double() @ weight.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    # Nothing else has changed its precision.
    assert model.dtype == dtype
    assert base.get_input_embeddings()(IDS).dtype == dtype


@torch.inference_mode()
def test_what_bfloat16_ties_is_told_apart():
    """Why the head exists: 2,000 tokens have about 1,000 different logits in bfloat16, and about
    2,000 in float32."""
    model = make_model("untied", torch.bfloat16)
    rounded = model(IDS, logits_to_keep=1).logits[0, -1].float()
    score_in_float32(model)
    told_apart = model(IDS, logits_to_keep=1).logits[0, -1]
    assert len(rounded.unique()) < 1100
    assert len(told_apart.unique()) > 1990
    assert torch.equal(told_apart.bfloat16().float(), rounded)
