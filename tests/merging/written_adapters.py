"""Small Llamas, and adapters on them that peft itself makes.

Every trained tensor is moved away from its start, so that a forgotten change shows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilrec.errors import InputError
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source

VOCAB, HIDDEN = 40, 16


def write_base(
    directory: Path,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    vocab: int = VOCAB,
    seed: int = 0,
) -> Path:
    """A Llama of two layers with its tokenizer, saved to `directory`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        attention_bias=True,
        initializer_range=0.2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # Biases begin at 0, where a forgotten one would not show.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    # Sampling settings, as those of an instruction-tuned base.
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.to(dtype).save_pretrained(directory)
    write_tokenizer(directory, vocab)
    return directory


def write_tokenizer(directory: Path, size: int) -> None:
    """As many words as the model has rows: <pad>, </s>, w2, w3, ..."""
    words = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(directory)


def write_adapter(
    base: Path, directory: Path, resize: int = 0, dtype: torch.dtype | None = None, **settings
) -> PeftModel:
    """An adapter, saved to `directory` with a tokenizer that knows the new tokens.

    resize: size of the vocabulary, 0 for the base's. settings: those of LoraConfig. Returns the
    model that the adapter is part of.
    """
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        **settings,
    }
    model = LlamaForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if resize:
            model.resize_token_embeddings(resize, mean_resizing=False)
        adapted = get_peft_model(model, LoraConfig(**settings))
        torch.manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or "token_adapter.trainable" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        if dtype:
            adapted.to(dtype)
        adapted.save_pretrained(directory)
    write_tokenizer(directory, max(resize, VOCAB))
    return adapted.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, vocab: int) -> torch.Tensor:
    """float32 [4, 12, V] for the same random tokens."""
    ids = torch.randint(vocab, (4, 12), generator=torch.Generator().manual_seed(2))
    return model(input_ids=ids).logits.float()


def run_merge(adapter: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    """The merged tensors, of a model that is written as one file."""
    with open_source(str(adapter)) as source:
        merge(source, output, **options)
    return load_file(output / "model.safetensors")


def refusal(adapter: Path, output: Path, base: str = "", **options) -> str:
    """The message that a merge is refused with. Nothing may be left of the output."""
    with pytest.raises(InputError) as raised, open_source(str(adapter), base) as source:
        merge(source, output, **options)
    assert not output.exists()
    assert not output.with_name(output.name + ".tmp").exists()
    return str(raised.value)


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
