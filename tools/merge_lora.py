"""Merge an adapter into its base: a plain Hugging Face model directory that ranks as the adapter does.

    python tools/merge_lora.py --adapter runs/stage2/final --output merged [--base DIR]

Loadable by AutoModelForCausalLM alone; the tokenizer, item index and data settings are copied along, so that ilrec/rank.py
reads it too. Merged in float32 and rounded once to the base's precision. Written beside and renamed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.base_model import find_model, load_base, load_tokenizer
from ilrec.config import ModelConfig
from ilrec.entry import run_entry
from ilrec.errors import InputError
from ilrec.model import add_item_tokens, load_adapter
from ilrec.training.zero3 import check_saved

logger = logging.getLogger("ilrec.merge_lora")
COPIED = ("item_index.json", "ilrec.yaml")


def merge(adapter: str, output: Path, base: str) -> None:
    """Raises InputError when `adapter` is none, does not fit its base, or `output` exists."""
    source = find_model(adapter, base)
    if source.adapter is None:
        raise InputError(f"--adapter: {adapter} is a full model, there is nothing to merge; expected a directory with "
                         "adapter_config.json")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"--output: {output} exists and is not empty; name a new directory, or remove it")
    tokenizer = load_tokenizer(source)
    stored = AutoConfig.from_pretrained(source.base).dtype or torch.float32
    model = load_base(source, ModelConfig(model=source.base, dtype="float32", attn_implementation="sdpa"))
    add_item_tokens(model, tokenizer)
    merged = load_adapter(model, source.adapter, is_trainable=False).merge_and_unload(safe_merge=True)
    untie_where_they_differ(merged)
    merged.to(stored)
    # Sampling settings left over from the base (temperature, top_p) would break beam search for the next user.
    merged.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    beside = output.with_name(output.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    merged.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    for name in COPIED:
        if (Path(adapter) / name).exists():
            shutil.copy(Path(adapter) / name, beside / name)
    check_saved(beside)
    if output.exists():
        output.rmdir()
    os.replace(beside, output)
    logger.info("%s + %s -> %s (%s parameters, %s)", source.base, adapter, output, f"{merged.num_parameters():,}", stored)


def untie_where_they_differ(model: PreTrainedModel) -> None:
    """Tied embeddings of which an adapter trained one side only must be saved as two tensors."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if model.config.tie_word_embeddings and embedding is not head:
        if torch.equal(embedding, head):
            model.tie_weights()
        else:
            model.config.tie_word_embeddings = False


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="final/ of a LoRA run, or any peft adapter directory")
    parser.add_argument("--output", required=True, type=Path, help="model directory to write")
    parser.add_argument("--base", default="", help="base model, where it is no longer at the recorded place")
    arguments = parser.parse_args(argv)
    merge(arguments.adapter, arguments.output, arguments.base)


if __name__ == "__main__":
    run_entry(main)
