"""What the project writes, read by transformers 4 and by the installed version, is the same
model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import launch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from ilrec.model.portable import TRIED_MODELS, make_portable

pytestmark = pytest.mark.slow
READER = Path(__file__).parent / "read_models.py"
# The last release of version 4, and what it needs.
OLDER = ["transformers==4.57.6", "huggingface-hub<1.0", "tokenizers<0.23", "peft==0.18.1"]
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
THETA = 777.0
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "sliding_window": 8,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ITEM_TOKENS = ["<a_1>", "<b_2>", "<c_0>"]


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """transformers 4, from the package index."""
    directory = tmp_path_factory.mktemp("older")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(directory)]
    subprocess.run([*pip, *OLDER], check=True)
    return directory


def assert_both_read_the_same(older: Path, directories: list[Path], place: Path) -> None:
    """Logits, tokens of texts and what is generated, by transformers 4 and by the installed one."""
    read = []
    for name, path in (("older.pt", str(older)), ("newer.pt", "")):
        reader = [sys.executable, str(READER), str(place / name), *map(str, directories)]
        result = subprocess.run(
            reader,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        read.append(torch.load(place / name))
    one, other = read
    assert one.pop("version") == "4.57.6" and other.pop("version") >= "5"
    for name in map(str, directories):
        assert one[name].keys() == other[name].keys() and one[name]
        for kind, value in one[name].items():
            if kind == "logits":
                assert (value - other[name][kind]).abs().max() < 1e-5, name
            else:
                assert value == other[name][kind], f"{name}: {kind}"


def tiny_model(model_type: str, rope: dict, directory: Path) -> Path:
    """A model that the installed transformers writes, with values that are no defaults."""
    probe = AutoConfig.for_model(model_type)
    fields = {name: value for name, value in TINY.items() if hasattr(probe, name)}
    rope = {**rope, "rope_theta": THETA}
    if "full_attention" in probe.rope_parameters:
        fields["layer_types"] = ["sliding_attention", "full_attention"]
        rope = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 33.0},
        }
    elif "partial_rotary_factor" in probe.rope_parameters:
        rope["partial_rotary_factor"] = 0.5
    set_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **fields, rope_parameters=rope)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    make_portable(directory)
    return directory


def test_every_tried_model_is_the_same_in_both(older, tmp_path):
    scaled = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")
    written = []
    for kind in TRIED_MODELS:
        for name in ROPES if kind in scaled else ("default",):
            written.append(tiny_model(kind, ROPES[name], tmp_path / f"{kind}-{name}"))
    assert_both_read_the_same(older, written, tmp_path)


def byte_level(prefix_space: bool) -> Tokenizer:
    """As Llama 3 and Qwen have it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def sentencepiece_form() -> Tokenizer:
    """As Llama 2 has it: a normalizer that prepends and replaces, bytes for the unknown, a first
    token."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyzPT<>_012,",
        "th",
        "▁th",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("t", "h"), ("▁", "th")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    first = {"single": "<s> $A", "pair": None, "special_tokens": [("<s>", 1)]}
    tokenizer.post_processor = processors.TemplateProcessing(**first)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


FAMILIES = {
    "byte_level": (byte_level(False), "PreTrainedTokenizerFast", {}),
    "prefix_space": (
        byte_level(True),
        "PreTrainedTokenizerFast",
        {"additional_special_tokens": ["<extra>"], "padding_side": "left"},
    ),
    "qwen": (
        byte_level(False),
        "Qwen2Tokenizer",
        {"additional_special_tokens": ["<|im_start|>"], "chat_template": "{{ messages }}"},
    ),
    "llama_2": (
        sentencepiece_form(),
        "LlamaTokenizerFast",
        {"unk_token": "<unk>", "add_bos_token": True},
    ),
    "no_first_token": (
        sentencepiece_form(),
        "LlamaTokenizer",
        {"unk_token": "<unk>", "add_bos_token": False, "legacy": False},
    ),
    "gemma": (sentencepiece_form(), "GemmaTokenizer", {"unk_token": "<unk>", "pad_token": "<unk>"}),
}


def test_every_family_of_tokenizers_is_the_same_in_both(older, tmp_path):
    """A base as the hub has it, with item tokens, saved as a run saves it."""

    def sample(tokenizer) -> list:
        ids = tokenizer("a text <a_1><b_2>")["input_ids"]
        return [ids, tokenizer.padding_side, tokenizer.all_special_tokens]

    for name, (state, kind, fields) in FAMILIES.items():
        base = tmp_path / "bases" / name
        base.mkdir(parents=True)
        state.save(str(base / "tokenizer.json"))
        content = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", **fields}
        (base / "tokenizer_config.json").write_text(json.dumps(content))
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(ITEM_TOKENS)
        tokenizer.save_pretrained(tmp_path / name)
        before = sample(tokenizer)
        make_portable(tmp_path / name)
        assert sample(AutoTokenizer.from_pretrained(tmp_path / name)) == before, name
    assert_both_read_the_same(older, [tmp_path / name for name in FAMILIES], tmp_path)


def test_what_a_run_writes_is_the_same_in_both(older, data, tmp_path):
    """From scratch, with scaled positions: the base, a checkpoint and final/ with LoRA and without,
    and the merged model."""
    rope = {**ROPES["llama3"], "rope_theta": 500000.0}
    init = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "rope_parameters": rope,
    }
    fields = flags(
        config="ilrec/recipes/sft.yaml", data=data, max_steps=2, save_steps=1, learning_rate=0.01
    )
    train = ["python", "ilrec/train.py", *fields]
    merge = ["python", "tools/merge_lora.py"]
    lora, full = tmp_path / "lora", tmp_path / "full"
    for words in (
        [*train, *flags(init=json.dumps(init), output_dir=lora)],
        [*train, *flags(model=lora / "base", adapter="none", output_dir=full)],
        [*merge, *flags(adapter=lora / "final", output=tmp_path / "merged")],
    ):
        result = launch(*words)
        assert result.returncode == 0, result.stderr[-4000:]
    written = [
        lora / "base",
        lora / "checkpoint-1",
        lora / "final",
        full / "checkpoint-1",
        full / "final",
        tmp_path / "merged",
    ]
    assert_both_read_the_same(older, written, tmp_path)
