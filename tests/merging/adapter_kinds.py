"""One adapter of every kind that is merged, for write_adapter."""

from __future__ import annotations

from written_adapters import VOCAB

# Numbers of tokens that the base does not have.
NEW = list(range(VOCAB, VOCAB + 6))
# (name, whether the base is tied, settings of write_adapter and of LoraConfig)
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
# A tied base that is changed on one side alone: the merged model is not tied.
UNTIED = {
    "tied: head whole",
    "tied: embedding whole",
    "tied: low rank in the head",
    "tied: low rank in the embedding",
}
