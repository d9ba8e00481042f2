"""Rules of peft for one module: its rank, its scaling, its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilrec.merging.adapter_settings import rank_of, scaling_of, token_ids_of
from ilrec.weights.tensor_files import StoredTensor

CONFIG = {
    "r": 8,
    "lora_alpha": 16,
    "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 4},
    "alpha_pattern": {"v_proj": 32},
}


@pytest.mark.parametrize(
    ("module", "rank", "scaling"),
    [
        ("model.layers.0.mlp.up_proj", 8, 16 / 8),
        ("model.layers.0.self_attn.q_proj", 2, 16 / 2),
        ("q_proj", 2, 16 / 2),
        # A pattern is the whole name, or its end after a dot.
        ("model.layers.0.self_attn.aq_proj", 8, 16 / 8),
        ("model.layers.0.self_attn.v_proj", 8, 32 / 8),
        ("model.layers.1.self_attn.v_proj", 4, 32 / 4),
    ],
)
def test_rank_and_scaling(module, rank, scaling):
    assert rank_of(CONFIG, module) == rank
    assert scaling_of(CONFIG, module) == scaling
    # alpha / sqrt(r) in place of alpha / r: sqrt(r) times as much.
    stabilised = scaling_of(CONFIG | {"use_rslora": True}, module)
    assert stabilised == pytest.approx(scaling * rank**0.5)


@pytest.mark.parametrize(
    ("listed", "of_embedding", "of_head"),
    [
        ([5, 6], (5, 6), (5, 6)),
        ({"embed_tokens": [5, 6]}, (5, 6), (5, 6)),  # the head is tied
        ({"embed_tokens": [5, 6], "lm_head": [7, 8]}, (5, 6), (7, 8)),
    ],
)
def test_tokens(listed, of_embedding, of_head):
    config = {"trainable_token_indices": listed}
    rows = StoredTensor(Path("adapter_model.safetensors"), "rows", "F32", (2, 16), 0)
    assert token_ids_of(config, "model.embed_tokens", rows) == of_embedding
    assert token_ids_of(config, "lm_head", rows) == of_head
