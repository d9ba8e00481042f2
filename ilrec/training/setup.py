"""What every program that trains needs before its first step, in the order in which it is needed.

The arguments start the process group; then the model to start from is found, its tokenizer gets the
items' tokens, the model is loaded, and the trainer is made from it and the samples.
ilrec/train.py uses all of it, tools/experiments/train_dpo.py everything but the trainer.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)

from ilrec.collaborative.collator import ContinuationCollator
from ilrec.collaborative.cross_fitting import RewardFilter
from ilrec.config.sections import ModelConfig, ObjectiveConfig, TrainConfig
from ilrec.config.training_arguments import HUB_FIELDS
from ilrec.errors import InputError
from ilrec.items.trie import ItemTrie
from ilrec.model.adapters import add_adapter, add_item_tokens, load_adapter
from ilrec.model.families import check_flattening
from ilrec.model.loading import (
    FLASH_ATTENTION,
    choose_dtype,
    is_materialised,
    load_base,
    materialise,
)
from ilrec.model.objective import attach_objective
from ilrec.model.source import ModelSource, find_model
from ilrec.ops.backends import why_unavailable
from ilrec.samples.batches import TokenBudgetSampler, is_flattened
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.collators import TrainingCollator, flattening_collator
from ilrec.samples.task import ITEM_INDEX, RecommendationTask, item_trie
from ilrec.samples.vocabulary import add_codes, code_ids
from ilrec.training import zero3
from ilrec.training.argument_checks import (
    arguments_checked,
    check_optimizer,
    check_schedule,
)
from ilrec.training.evaluation import make_evaluation, validation_samples
from ilrec.training.identity import base_origin
from ilrec.training.model_card import training_card
from ilrec.training.nonfinite import IdentifiedCollator
from ilrec.training.recorded_base import check_source
from ilrec.training.trackers import MADE_HERE, chosen_trackers, tracker_callbacks
from ilrec.training.trainer import ILRecTrainer

logger = logging.getLogger("ilrec.train")


def training_arguments(config: TrainConfig, ds_config: dict | None) -> TrainingArguments:
    """The Hugging Face arguments.

    Making them starts the process group, and tells transformers whether models are loaded sharded.
    Raises InputError for settings that transformers refuses.
    """
    fields = dataclasses.asdict(config.training) | config.training_arguments
    for name in HUB_FIELDS:
        fields.pop(name, None)
    # The checkpoint to resume from is chosen by ilrec/training/checkpoints.py.
    fields.pop("resume")
    trackers = chosen_trackers(config.training)
    fields["report_to"] = [name for name in trackers if name not in MADE_HERE]
    if config.model.gradient_checkpointing:
        fields["gradient_checkpointing"] = True
        fields["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    dtype = choose_dtype(config.model.dtype)
    fields |= {
        "eval_strategy": config.evaluation.eval_strategy,
        "eval_steps": config.evaluation.eval_steps,
        "per_device_eval_batch_size": config.evaluation.per_device_eval_batch_size,
        "deepspeed": ds_config,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        # Batches hold more than the model's forward names: sample numbers and rewards.
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "label_names": ["labels"],
        # The loss is a mean over the supervised tokens of the whole step, on all ranks.
        "average_tokens_across_devices": True,
    }
    check_schedule(config)
    with arguments_checked():
        arguments = TrainingArguments(**fields)
    check_optimizer(arguments)
    return arguments


def places_read(config: ModelConfig) -> list[str]:
    """Where the model to start from lies; empty if it is made from scratch.

    Raises InputError if there is no model there.
    """
    if is_materialised(config):
        return [config.model] if config.model else []
    source = find_model(config.model, config.base)
    return [place for place in (source.base, source.adapter) if place]


def find_source(
    config: TrainConfig, task: RecommendationTask, arguments: TrainingArguments
) -> ModelSource:
    """The model to start from. Every rank calls it.

    A model from scratch or from GGUF is first written as a Hugging Face directory, so that
    everything after this reads one kind of thing.
    """
    if not is_materialised(config.model):
        return named_source(config.model, task)
    # One process writes it; the others wait, and then read what it has written.
    directory = Path(config.training.output_dir) / "base"
    texts = (task.prompt.item_text(item) for item in range(task.dataset.num_items))
    with arguments.main_process_first(local=False), zero3.unsharded(arguments):
        if arguments.process_index == 0:
            origin = base_origin(config, task)
            materialise(config.model, directory, texts, config.training.seed, origin)
    return find_model(str(directory))


def named_source(config: ModelConfig, task: RecommendationTask) -> ModelSource:
    """The model that `model:` names.

    Raises InputError if it is missing, an adapter of another base, or has learned other item
    tokens.
    """
    source = find_model(config.model, config.base)
    check_source(source)
    task.check_learned_index(Path(source.tokenizer) / ITEM_INDEX)
    return source


def check_backend(objective: ObjectiveConfig, device: torch.device) -> None:
    """Raises InputError if the vocabulary operation's backend cannot run on this device."""
    unavailable = why_unavailable(
        objective.backend, device, torch.float32, objective.negatives_from
    )
    if unavailable:
        raise InputError(f"backend: {unavailable}")


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: list[str], config: TrainConfig, source: ModelSource
) -> None:
    """Add the items' tokens to the tokenizer.

    Raises InputError if tokens are new and their rows would not be trained.
    """
    num_added = add_codes(tokenizer, tokens)
    if num_added and source.adapter:
        raise InputError(
            f"{source.adapter}: {num_added} of {len(tokens)} semantic-ID tokens are unknown to it, "
            "and an adapter gets no new ones; expected the semantic IDs that it was trained with "
            "(its item_index.json), or a merged model"
        )
    if num_added and config.model.adapter == "lora" and not config.model.train_item_tokens:
        raise InputError(
            f"train_item_tokens: false would leave {num_added} new semantic-ID tokens untrained "
            "and unsaved; expected true unless the base model knows them already"
        )


def load_model(
    config: TrainConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    item_tokens: list[str],
    item_token_ids: list[int],
    load: Callable[[ModelSource, ModelConfig], PreTrainedModel] = load_base,
) -> PreTrainedModel | PeftModel:
    """The base model with rows for new tokens, the adapter and the objective.

    item_tokens: the semantic-ID tokens as text. item_token_ids: all tokens that occur in an item.
    load: gives the base; a dry run loads it without its weights.
    """
    base = load(source, config.model)
    new_rows = add_item_tokens(base, tokenizer)
    if source.adapter and config.model.adapter == "none":
        raise InputError(
            f"model: {source.adapter} is an adapter and adapter is none: merge it first "
            "(`ilrec merge`), or set adapter: lora"
        )

    model: PreTrainedModel | PeftModel = base
    if source.adapter:
        model = load_adapter(base, source.adapter, is_trainable=True)
    elif config.model.adapter == "lora":
        learnt = code_ids(tokenizer, item_tokens if config.model.train_item_tokens else [])
        # All new rows are trained: an adapter saves only what it trains.
        model = add_adapter(base, config.model, sorted({*new_rows, *learnt.values()}))

    if config.model.gradient_checkpointing:
        # With frozen embeddings, checkpointed layers would have no input that needs a gradient.
        model.enable_input_require_grads()
    attach_objective(model, config.objective, item_token_ids)
    zero3.register_token_rows(model)
    return model


def make_trainer(
    config: TrainConfig,
    task: RecommendationTask,
    builder: SampleBuilder,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Sequence[TrainerCallback] = (),
    facts: Mapping[str, Any] | None = None,
) -> ILRecTrainer:
    """The trainer with its samples. facts: what checkpoints' manifests record of the run."""
    samples = task.training_samples(builder)
    _log_sizes(model, len(samples), task)

    # Batches are of a number of samples, or of a number of tokens. Those of tokens are padded, or
    # flattened into one row; evaluation batches are always padded.
    # Made once, and only if the objective or the evaluation looks at it.
    trie = functools.cache(lambda: item_trie(builder))
    with_continuations = _continuations(config, task, trie)
    collate = IdentifiedCollator(with_continuations(TrainingCollator(tokenizer.pad_token_id)))
    batch_collate = collate
    sampler = None
    if config.data.max_tokens_per_batch:
        flattened = flattens(config, model)
        if flattened:
            flash = model.config._attn_implementation == FLASH_ATTENTION
            flatten = flattening_collator(boundaries=flash)
            batch_collate = IdentifiedCollator(with_continuations(flatten))
        sampler = TokenBudgetSampler(
            samples.num_tokens(),
            config.data.max_tokens_per_batch,
            flattened,
            config.training.seed,
            arguments.process_index,
            arguments.world_size,
        )
        logger.info(
            "%s micro-steps an epoch and rank, %.1f%% of the tokens processed are real",
            f"{len(sampler):,}",
            100 * sampler.real_token_share,
        )

    validation = evaluation = None
    if config.evaluation.eval_strategy != "no":
        validation = validation_samples(config.evaluation, task, builder)
        evaluation = make_evaluation(
            config.evaluation, task, validation, trie, tokenizer.pad_token_id, arguments.device
        )
    trainer = ILRecTrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset=validation,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        batch_sampler=sampler,
        batch_collator=batch_collate,
        evaluation=evaluation,
        facts=facts,
        card=training_card(config, task.dataset),
    )
    if trainer.is_world_process_zero():
        trackers = chosen_trackers(config.training)
        for callback in tracker_callbacks(trackers, config.training.output_dir):
            trainer.add_callback(callback)
    return trainer


def flattens(config: TrainConfig, model: PreTrainedModel | PeftModel) -> bool:
    """Whether batches by token budget are flattened into one row. Raises InputError for a model
    that cannot read such a row."""
    flash = model.config._attn_implementation == FLASH_ATTENTION
    if not is_flattened(config.data.batch_layout, flash):
        return False
    check_flattening(model.config)
    return True


def num_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trained)"""
    num_all = num_trained = 0
    for parameter in model.parameters():
        # Under ZeRO-3 a rank holds a shard; ds_numel is the size of the whole parameter.
        size = getattr(parameter, "ds_numel", parameter.numel())
        num_all += size
        num_trained += size if parameter.requires_grad else 0
    return num_all, num_trained


def _continuations(
    config: TrainConfig, task: RecommendationTask, trie: Callable[[], ItemTrie]
) -> Callable[[Any], Any]:
    """What wraps a collator so that batches hold the continuations that the objective looks at.

    The collator stays as it is if the objective looks at none. The rewards of the continuations
    come from SASRec; without reward_weight they are 0.
    """
    if not config.objective.vocabulary_objective().needs_continuations:
        return lambda collate: collate
    reward_filter = None
    if config.objective.reward_weight:
        dataset = task.dataset
        reward_filter = RewardFilter.load(
            config.objective.sasrec, dataset.item_ids, str(dataset.rule)
        )
    return functools.partial(ContinuationCollator, reward_filter=reward_filter, trie=trie())


def _log_sizes(model: torch.nn.Module, num_samples: int, task: RecommendationTask) -> None:
    num_all, num_trained = num_parameters(model)
    logger.info(
        "%s users, %s items, %s training samples; %s parameters, %s trained",
        f"{task.dataset.num_users:,}",
        f"{task.dataset.num_items:,}",
        f"{num_samples:,}",
        f"{num_all:,}",
        f"{num_trained:,}",
    )
