"""What every program that trains starts with and ends with: model, samples, trainer, run directory,
final/."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from ilrec.collaborative.collator import ContinuationCollator
from ilrec.collaborative.sasrec import SASRec
from ilrec.config.loading import write_yaml
from ilrec.config.sections import ModelConfig, TrainConfig
from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.model.adapters import add_adapter, add_item_tokens, load_adapter
from ilrec.model.families import check_flattening
from ilrec.model.loading import (
    FLASH_ATTENTION,
    choose_dtype,
    is_materialised,
    load_base,
    materialise,
)
from ilrec.model.objective import attach_objective, vocabulary_objective
from ilrec.model.source import ModelSource, find_model, local_directory
from ilrec.processes import environment
from ilrec.samples.batches import TokenBudgetSampler, is_flattened
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.collators import TrainingCollator, flattening_collator
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import ITEM_INDEX, RecommendationTask, item_trie
from ilrec.samples.vocabulary import add_codes, code_ids
from ilrec.training import zero3
from ilrec.training.checkpoints import (
    FINAL,
    full_disk_is_said,
    publish,
    staging,
)
from ilrec.training.identity import base_origin
from ilrec.training.nonfinite import IdentifiedCollator
from ilrec.training.recorded_base import check_source
from ilrec.training.together import agreed
from ilrec.training.trainer import ILRecTrainer
from ilrec.weights.fingerprint import weights_fingerprint

logger = logging.getLogger("ilrec.train")


def training_arguments(config: TrainConfig, ds_config: dict | None) -> TrainingArguments:
    """The Hugging Face arguments; creating them starts the process group and announces ZeRO-3 to
    model loading."""
    fields = {k: v for k, v in dataclasses.asdict(config.training).items() if k != "resume"}
    dtype = choose_dtype(config.model.dtype)
    if config.model.gradient_checkpointing:
        fields |= {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    return TrainingArguments(
        **fields,
        deepspeed=ds_config,
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        report_to=[],
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        average_tokens_across_devices=True,
    )


def load_model(
    config: TrainConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    item_tokens: list[str],
    item_token_ids: list[int],
) -> PreTrainedModel | PeftModel:
    """Base model, rows for new tokens, adapter, objective."""
    base = load_base(source, config.model)
    new_rows = add_item_tokens(base, tokenizer)
    if source.adapter and config.model.adapter == "none":
        raise InputError(
            f"model: {source.adapter} is an adapter and adapter is none: merge it first "
            "(tools/merge_lora.py), or set adapter: lora"
        )
    model: PreTrainedModel | PeftModel = base
    if source.adapter:
        model = load_adapter(base, source.adapter, is_trainable=True)
    elif config.model.adapter == "lora":
        learnt = code_ids(tokenizer, item_tokens if config.model.train_item_tokens else [])
        # A new row that was not trained would not be saved either.
        model = add_adapter(base, config.model, sorted({*new_rows, *learnt.values()}))
    if config.model.gradient_checkpointing:
        # Frozen embeddings give checkpointed layers nothing to differentiate otherwise.
        model.enable_input_require_grads()
    attach_objective(model, config.objective, item_token_ids)
    zero3.register_token_rows(model)
    return model


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: list[str], config: TrainConfig, source: ModelSource
) -> None:
    num_added = add_codes(tokenizer, tokens)
    if num_added and source.adapter:
        raise InputError(
            f"{source.adapter}: {num_added} of {len(tokens)} semantic-ID tokens are unknown to it, "
            "and an adapter gets no new ones; expected the semantic IDs that it was trained with "
            "(its item_index.json), or a merged model"
        )
    if num_added and config.model.adapter == "lora" and not config.model.train_item_tokens:
        raise InputError(
            f"train_item_tokens: false would leave {num_added} new semantic-ID tokens untrained and unsaved; "
            "expected true unless the base model knows them already"
        )


def continuation_collators(
    config: TrainConfig, task: RecommendationTask, builder: SampleBuilder
) -> Callable[[Any], Any]:
    """What adds continuations and their rewards to a collator, where the objective looks at
    them."""
    if not vocabulary_objective(config.objective).needs_continuations:
        return lambda collate: collate
    if config.objective.reward_weight == 0:
        return functools.partial(ContinuationCollator, sasrec=None, trie=item_trie(builder))
    sasrec = SASRec.load(config.objective.sasrec, task.dataset.item_ids)
    return functools.partial(ContinuationCollator, sasrec=sasrec, trie=item_trie(builder))


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
    """Samples in batches: of a number of samples, or by token budget, padded or flattened. facts:
    for checkpoints' manifests."""
    samples = task.training_samples(builder)
    log_sizes(model, samples, task)
    with_continuations = continuation_collators(config, task, builder)
    collate = batch_collate = IdentifiedCollator(
        with_continuations(TrainingCollator(tokenizer.pad_token_id))
    )
    sampler = None
    if config.data.max_tokens_per_batch:
        flash = model.config._attn_implementation == FLASH_ATTENTION
        flattened = is_flattened(config.data.batch_layout, flash)
        if flattened:
            check_flattening(model.config)
            batch_collate = IdentifiedCollator(
                with_continuations(flattening_collator(boundaries=flash))
            )
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
    validation = (
        EvaluationSamples(task.dataset, builder, "valid")
        if config.training.eval_strategy != "no"
        else None
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
        facts=facts,
    )
    if trainer.is_world_process_zero():
        trainer.add_callback(
            TensorBoardCallback(
                SummaryWriter(str(Path(config.training.output_dir) / "tensorboard"))
            )
        )
    return trainer


def base_facts(source: ModelSource) -> dict[str, Any]:
    """Which weights training started from, so that an adapter is not merged into others.

    Empty where they are not in safetensors. Every rank calls it, and gets what rank 0 has read.
    """

    def read() -> dict[str, Any]:
        with contextlib.suppress(InputError):
            weights = weights_fingerprint(local_directory(source.base))
            return {"name": source.base, "weights": weights}
        return {}

    return agreed(read)


def places_read(config: ModelConfig) -> list[str]:
    """Where the model to start from lies; nowhere, where it is made from scratch."""
    if is_materialised(config):
        return [config.model] if config.model else []
    source = find_model(config.model, config.base)
    return [place for place in (source.base, source.adapter) if place]


def find_source(
    config: TrainConfig, task: RecommendationTask, arguments: TrainingArguments
) -> ModelSource:
    """The model to start from; one from scratch or from GGUF is first written as a directory, by
    one process."""
    if not is_materialised(config.model):
        source = find_model(config.model.model, config.model.base)
        check_source(source)
        task.check_learned_index(Path(source.tokenizer) / ITEM_INDEX)
        return source
    directory = Path(config.training.output_dir) / "base"
    texts = (task.prompt.item_text(item) for item in range(task.dataset.num_items))
    with arguments.main_process_first(local=False), zero3.unsharded(arguments):
        if arguments.process_index == 0:
            origin = base_origin(config, task)
            materialise(config.model, directory, texts, config.training.seed, origin)
    return find_model(str(directory))


def write_run_directory(
    config: TrainConfig, ds_config: dict | None, argv: list[str], task: RecommendationTask
) -> None:
    directory = Path(config.training.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_yaml(directory / "config.yaml", config)
    if ds_config is not None:
        write_text(directory / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")
    task.write_item_index(
        directory / ITEM_INDEX
    )  # a checkpoint that is merged while the run goes on needs it
    write_text(
        directory / "environment.json",
        json.dumps(environment(argv) | {"data": task.dataset.fingerprint}, indent=2) + "\n",
    )


def save_final(
    trainer: Trainer, config: TrainConfig, task: RecommendationTask, facts: Mapping[str, Any]
) -> None:
    """final/: model or adapter, tokenizer, and what ranking needs to render users and items the
    same way; all of it or nothing."""
    output_dir = config.training.output_dir
    directory = staging(output_dir) / FINAL
    with full_disk_is_said(output_dir):
        trainer.save_model(str(directory))
        if trainer.is_world_process_zero():
            task.write_item_index(directory / ITEM_INDEX)
            write_yaml(directory / "ilrec.yaml", config)
        publish(output_dir, FINAL, {"step": trainer.state.global_step, **facts})


def log_sizes(model: torch.nn.Module, samples: Sized, task: RecommendationTask) -> None:
    def count(trainable_only: bool) -> int:
        return sum(
            getattr(p, "ds_numel", p.numel())
            for p in model.parameters()
            if p.requires_grad or not trainable_only
        )

    logger.info(
        "%s users, %s items, %s training samples; %s parameters, %s trained",
        *(
            f"{n:,}"
            for n in (
                task.dataset.num_users,
                task.dataset.num_items,
                len(samples),
                count(False),
                count(True),
            )
        ),
    )
