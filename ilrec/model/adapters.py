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
    """Adds embedding and head rows for the tokens that the tokenizer has and the model lacks.
    Returns the numbers of the new rows.

    A vocabulary that was padded keeps its rows. What is needed follows from the largest token
    number and not from how many tokens there are, because a tokenizer may leave numbers unused.
    """
    before = vocabulary_rows(model)
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > before:
        model.resize_token_embeddings(needed, mean_resizing=False)
    return range(before, needed)


def add_adapter(model: PreTrainedModel, config: ModelConfig, token_ids: list[int]) -> PeftModel:
    """A fresh LoRA adapter on the model. The embedding and head rows of `token_ids` are trained
    beside it.

    Raises InputError if config.lora_target_modules does not fit the model.
    """
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
            f"lora_target_modules: {config.lora_target_modules!r} does not fit "
            f"{type(model).__name__}: {reason}"
        ) from error
    check_adapted(adapted)
    return _saved_without_embeddings(adapted)


def load_adapter(model: PreTrainedModel, directory: str | Path, is_trainable: bool) -> PeftModel:
    """An adapter on its base. The adapter records from now on where that base is.

    Raises InputError if its tensors do not fit the base, or are missing.
    """
    # The steps of PeftModel.from_pretrained, taken one by one: that function only warns of missing
    # tensors, and does not tell which tensors it left unused.
    try:
        settings = PeftConfig.from_pretrained(str(directory))
        settings.inference_mode = not is_trainable
        adapted: Any = get_peft_model(model, settings)
        loaded = adapted.load_adapter(str(directory), "default", is_trainable=is_trainable)
        # The base may have moved since the adapter was saved.
        adapted.active_peft_config.base_model_name_or_path = model.config.name_or_path
    except (RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"{directory}: this adapter does not load on {model.config.name_or_path}: {reason}"
        ) from error

    # A base may have tensors that its model does not use; an adapter that has some is another's.
    unused = loaded.unexpected_keys
    fault = loading_fault(loaded.missing_keys, unused)
    if not fault and unused:
        fault = f"{len(unused)} tensors are not used, first: {unused[0]}"
    if fault:
        raise InputError(
            f"{directory}: this adapter does not load whole on {model.config.name_or_path}: "
            f"{fault}; it was made for another base, or is damaged"
        )
    return _saved_without_embeddings(adapted)


def _saved_without_embeddings(model: PeftModel) -> PeftModel:
    """The model, whose adapter is saved without the [V, H] matrices of embedding and head.

    peft would add both once the vocabulary has grown. The trained rows are saved in any case.
    """
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return model


def _name_of(model: nn.Module, module: nn.Module) -> str:
    """The last part of a submodule's name, as in "lm_head"."""
    for name, candidate in model.named_modules():
        if candidate is module:
            return name.rsplit(".", 1)[-1]
    raise KeyError(f"{type(module).__name__} is not part of {type(model).__name__}")
