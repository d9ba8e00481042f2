"""What the project writes names its settings as transformers 4 does, too.

Both versions side by side: integration/test_older_transformers.py.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from merging.written_adapters import VOCAB, write_adapter, write_base
from transformers import AutoConfig, LlamaConfig

from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.model import portable
from ilrec.model.portable import make_portable, portable_config, portable_tokenizer_config
from ilrec.training.checkpoints import publish

SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def as_json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, SCALED], ids=["default", "scaled"])
def test_config_says_rope_in_both_forms(rope, tmp_path):
    config = LlamaConfig(
        rope_parameters={**rope, "rope_theta": 777.0}, max_position_embeddings=64, dtype="bfloat16"
    )
    config.save_pretrained(tmp_path)
    make_portable(tmp_path)
    written = as_json(tmp_path / "config.json")
    assert (
        written["rope_theta"] == 777.0 and written["torch_dtype"] == written["dtype"] == "bfloat16"
    )
    assert written["rope_scaling"] == (None if rope["rope_type"] == "default" else rope)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters and again.dtype == torch.bfloat16
    again.save_pretrained(tmp_path)
    make_portable(tmp_path)
    assert as_json(tmp_path / "config.json") == written


def test_rope_by_the_kind_of_layer_in_text_config_too():
    layers = {
        "full_attention": {
            "rope_type": "linear",
            "factor": 8.0,
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = {"rope_parameters": layers}
    for written in (
        portable_config(config),
        portable_config({"text_config": config})["text_config"],
    ):
        assert written == {
            "rope_parameters": layers,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }


def test_what_version_4_wrote_stays():
    config = {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "bfloat16",
    }
    assert portable_config(config) == config
    tokenizer = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_prefix_space": None,
        "extra_special_tokens": {"image_token": "<i>"},
    }
    assert portable_tokenizer_config(tokenizer, {}) == tokenizer


def test_tokenizer_config_names_a_class_that_both_have():
    config = {
        "backend": "tokenizers",
        "tokenizer_class": "LlamaTokenizer",
        "extra_special_tokens": ["<x>"],
        "eos_token": "</s>",
    }
    written = portable_tokenizer_config(
        config, {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}
    )
    assert written == {
        "backend": "tokenizers",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<x>"],
        "eos_token": "</s>",
        "padding_side": "left",
        "add_prefix_space": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    assert "padding_side" not in portable_tokenizer_config(
        {**config, "tokenizer_class": "TokenizersBackend"}, {}
    )
    own_code = {**config, "auto_map": {"AutoTokenizer": ["x.Slow", "x.Fast"]}}
    assert portable_tokenizer_config(own_code, {}) == own_code


@pytest.mark.parametrize(
    ("config", "is_reported"),
    [
        ({"model_type": "gpt_neox", "transformers_version": "5.1.0"}, True),
        ({"model_type": "gpt_neox", "transformers_version": "4.45.0"}, False),
        ({"model_type": "llama", "transformers_version": "5.1.0"}, False),
        (
            {
                "model_type": "phi3",
                "transformers_version": "5.1.0",
                "rope_parameters": {"rope_type": "longrope"},
            },
            True,
        ),
        (
            {
                "model_type": "gemma3_text",
                "transformers_version": "5.1.0",
                "rope_parameters": {
                    "full_attention": {},
                    "sliding_attention": {"rope_type": "linear"},
                },
            },
            True,
        ),
    ],
)
def test_a_model_that_was_not_tried_is_reported_once(config, is_reported, tmp_path, caplog):
    portable._warn_untried.cache_clear()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        make_portable(tmp_path)
        make_portable(tmp_path)
    assert len(caplog.records) == is_reported
    assert not is_reported or "install transformers>=5.1.0" in caplog.text


def assert_is_portable(directory: Path) -> None:
    config, tokenizer = (
        as_json(directory / "config.json"),
        as_json(directory / "tokenizer_config.json"),
    )
    assert (
        config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        and "rope_scaling" in config
        and "torch_dtype" in config
    )
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_every_directory_that_is_written_is_portable(base, tmp_path):
    assert_is_portable(base)
    write_base(tmp_path / ".saving" / "checkpoint-1")
    publish(tmp_path, "checkpoint-1", {})
    assert_is_portable(tmp_path / "checkpoint-1")
    write_adapter(
        write_base(tmp_path / "base"),
        tmp_path / "adapter",
        trainable_token_indices={"embed_tokens": [VOCAB - 1]},
    )
    with open_source(str(tmp_path / "adapter")) as source:
        merge(source, tmp_path / "merged")
    assert_is_portable(tmp_path / "merged")
