"""What training adds to a base model: rows for new tokens, and a LoRA adapter."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.model.families import check_adapted, lora_targets
from ilrec.model.head import vocabulary_rows
from ilrec.model.loading_fault import loading_fault


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> range:
    """Rows for tokens that the tokenizer has and the model lacks; returns which.

    A padded vocabulary keeps its rows. The largest number counts, not how many tokens there are: a
    tokenizer need not use every number.
    """
    before, needed = vocabulary_rows(model), max(tokenizer.get_vocab().values()) + 1
    if needed > before:
        model.resize_token_embeddings(needed, mean_resizing=False)
    return range(before, needed)


def add_adapter(model: PreTrainedModel, config: ModelConfig, token_ids: list[int]) -> PeftModel:
    """A fresh LoRA adapter; beside it the embedding and head rows of `token_ids` are trained."""
    rows: dict[str, list[int]] | None = None
    if token_ids:
        rows = {_name_of(model, model.get_input_embeddings()): token_ids}
        if not model.config.tie_word_embeddings:
            rows[_name_of(model, model.get_output_embeddings())] = token_ids
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=lora_targets(model, config.lora_target_modules),
        trainable_token_indices=rows,
    )
    try:
        adapted: Any = get_peft_model(model, adapter)
    except (ValueError, re.error) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"lora_target_modules: {config.lora_target_modules!r} does not fit {type(model).__name__}: "
            f"{reason}"
        ) from error
    check_adapted(adapted)
    return _saved_without_embeddings(adapted)


def load_adapter(model: PreTrainedModel, directory: str | Path, is_trainable: bool) -> PeftModel:
    """An adapter on its base, whose place it records from now on. InputError when its tensors do
    not fit the base or are missing."""
    try:
        # As PeftModel.from_pretrained, which warns of missing tensors and does not say which ones
        # it left unused.
        settings = PeftConfig.from_pretrained(str(directory))
        settings.inference_mode = not is_trainable
        adapted: Any = get_peft_model(model, settings)
        loaded = adapted.load_adapter(str(directory), "default", is_trainable=is_trainable)
        adapted.active_peft_config.base_model_name_or_path = (
            model.config.name_or_path
        )  # it may have moved
    except (RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"{directory}: this adapter does not load on {model.config.name_or_path}: {reason}"
        ) from error
    unused = loaded.unexpected_keys
    fault = loading_fault(loaded.missing_keys, unused) or (
        f"{len(unused)} tensors are not used, first: {unused[0]}" if unused else ""
    )
    if fault:
        raise InputError(
            f"{directory}: this adapter does not load whole on {model.config.name_or_path}: {fault}; it was made "
            "for another base, or is damaged"
        )
    return _saved_without_embeddings(adapted)


def _saved_without_embeddings(model: PeftModel) -> PeftModel:
    """peft adds both whole [V, H] matrices to an adapter once the vocabulary has grown; the trained
    rows are saved anyway."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return model


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module).rsplit(
        ".", 1
    )[-1]
