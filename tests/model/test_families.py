"""Families of bases, tiny and random: loaded, trained a step, saved, ranked, merged. What one
cannot do is refused before training."""

import pytest
import torch
from tiny_models import NEW_TOKENS, batch
from transformers import AutoConfig, AutoModelForCausalLM

from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.errors import InputError
from ilrec.items.trie import ItemTrie
from ilrec.merging.merge import merge
from ilrec.merging.sources import MergeSource
from ilrec.merging.verification import verify
from ilrec.model.adapters import add_adapter, load_adapter
from ilrec.model.families import check_flattening
from ilrec.model.loading import load_base
from ilrec.model.objective import attach_objective
from ilrec.model.source import ModelSource
from ilrec.ranking.beam_search import trie_beam_search

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma": {},
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
}
WITH_EXPERTS = [name for name, fields in FAMILIES.items() if "num_experts" in fields]
LORA = ModelConfig(model="x", lora_rank=4)
OBJECTIVE = ObjectiveConfig(beta=0.1, num_readout_layers=2)
SEQUENCES = [[3, 60, 61, 1], [3, 60, 62, 1], [4, 1], [5, 60, 1], [5, 63, 1]]
PROMPTS = [[10, 11, 12, 13, 14, 15], [12, 9]]


def write(family, directory):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    ).save_pretrained(directory)
    return ModelSource(base=str(directory))


@pytest.mark.parametrize("family", FAMILIES)
def test_from_base_to_ranking_and_merge(family, tmp_path):
    source = write(family, tmp_path / "base")
    model = add_adapter(load_base(source, LORA), LORA, NEW_TOKENS)
    attach_objective(model, OBJECTIVE, NEW_TOKENS)
    model.train()(**batch()).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert (
        sum(p.grad.abs().sum().item() > 0 for p in trained.values()) >= len(trained) // 2
    )  # LoRA's A begins without one
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    adapted = load_adapter(load_base(source, LORA), tmp_path / "adapter", is_trainable=False)
    ranks_as_without_cache(adapted)
    merge(
        MergeSource(tmp_path / "base", tmp_path / "adapter", tmp_path / "adapter"),
        tmp_path / "merged",
    )
    merged = load_base(ModelSource(base=str(tmp_path / "merged")), LORA)
    with torch.no_grad():
        ids = batch()["input_ids"]
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-3, atol=1e-3)


def test_experts_are_not_verified(tmp_path):
    """transformers keeps them under other names than the files."""
    write("mixtral", tmp_path)
    with pytest.raises(InputError, match="--verify"):
        verify(tmp_path, MergeSource(tmp_path, tmp_path, tmp_path))


@torch.inference_mode()
def ranks_as_without_cache(model):
    """As wide as the catalogue, beam search gives each item the score it has in one forward of
    prompt and item."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    items, scores = trie_beam_search(
        model, ids, mask, ItemTrie.from_sequences(SEQUENCES), len(SEQUENCES)
    )
    for row, prompt in enumerate(PROMPTS):
        for item, score in zip(items[row].tolist(), scores[row].tolist(), strict=True):
            logps = model(torch.tensor([prompt + SEQUENCES[item]])).logits[0].log_softmax(-1)
            expected = sum(
                logps[len(prompt) + i - 1, token].item() for i, token in enumerate(SEQUENCES[item])
            )
            assert score == pytest.approx(expected, abs=1e-3), (prompt, item)


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_a_router_is_not_trained_without_its_loss(family, tmp_path):
    with pytest.raises(InputError, match="router_aux_loss_coef"):
        attach_objective(load_base(write(family, tmp_path), LORA), OBJECTIVE, [])


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    "targets",
    [["q_proj", "gate"], ["w1", "w2", "w3"], ["gate_proj", "up_proj", "down_proj"], ["nothing"]],
)
def test_experts_are_not_adapted(family, targets, tmp_path):
    """Nor is what no layer is called: one message, whether peft raises or goes on."""
    with pytest.raises(InputError, match="lora_target_modules"):
        add_adapter(
            load_base(write(family, tmp_path), LORA),
            ModelConfig(model="x", lora_dropout=0.0, lora_target_modules=targets),
            [],
        )


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if "linear_key_head_dim" in FAMILIES[name]]
)
def test_a_state_does_not_run_through_a_flattened_row(family):
    with pytest.raises(InputError, match="batch_layout"):
        check_flattening(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]))
    check_flattening(AutoConfig.for_model("llama"))
