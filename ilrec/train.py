"""Train one stage: sft, stage1, stage2 or joint; a stage is a recipe and the model that it starts from.

    python ilrec/train.py --config ilrec/recipes/sft.yaml --data DIR --output_dir runs/sft            # one process, no DeepSpeed
    deepspeed --num_gpus 2 ilrec/train.py --ds_config ds_configs/zero3_cpu.json --config ilrec/recipes/stage1.yaml \\
        --model runs/sft/final --data DIR --output_dir runs/stage1
    torchrun --nproc_per_node 8 ilrec/train.py --ds_config ds_configs/zero3_bf16.json --config ilrec/recipes/stage2.yaml ...

Any field of a recipe may be given as --field value. The run directory explains itself: config.yaml, ds_config.json,
environment.json, metrics.jsonl, tensorboard/, checkpoint-*/ and final/.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

if __package__ in (None, ""):  # started as a file: ilrec/ itself is first on sys.path, its parent must be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.base_model import (
    FLASH_ATTENTION,
    choose_attention,
    choose_dtype,
    is_materialised,
    load_base,
    load_tokenizer,
    materialise,
)
from ilrec.collaborative.sasrec import SASRec
from ilrec.command_line import ArgumentParser
from ilrec.config import (
    ModelConfig,
    TrainConfig,
    load_config,
    parse_overrides,
    write_text,
    write_yaml,
)
from ilrec.data.batches import TokenBudgetSampler, is_flattened
from ilrec.data.collators import TrainingCollator, flattening_collator
from ilrec.data.samples import EvaluationSamples, SampleBuilder
from ilrec.data.task import ITEM_INDEX, RecommendationTask, item_trie, load_task
from ilrec.data.vocabulary import add_codes, code_ids
from ilrec.entry import environment, joining_ranks, rank, run_entry, world_size
from ilrec.errors import InputError
from ilrec.families import check_flattening
from ilrec.identity import base_origin, run_identity
from ilrec.merging.fingerprint import weights_fingerprint
from ilrec.merging.sources import check_source
from ilrec.model import add_adapter, add_item_tokens, attach_objective, load_adapter, vocabulary_objective
from ilrec.model_source import ModelSource, find_model, local_directory
from ilrec.ops.backends import why_unavailable
from ilrec.outputs import check_directory
from ilrec.training import zero3
from ilrec.training.checkpoints import (
    FINAL,
    RunLock,
    find_checkpoint,
    forget_unfinished,
    full_disk_is_said,
    publish,
    ranks_of,
    require_base,
    set_aside,
    staging,
)
from ilrec.training.nonfinite import IdentifiedCollator
from ilrec.training.stop import STOPPED, StopRequest
from ilrec.training.together import agreed
from ilrec.training.trainer import ContinuationCollator, ILRecTrainer

logger = logging.getLogger("ilrec.train")


def parse_arguments(argv: list[str]) -> tuple[TrainConfig, str | None]:
    """The resolved settings and the DeepSpeed configuration's path."""
    parser = ArgumentParser(__doc__, epilog="The fields, with help and defaults: ilrec/config.py")
    parser.add_argument("--config", help="recipe (YAML)")
    parser.add_argument("--ds_config", "--deepspeed", dest="ds_config", help="DeepSpeed configuration (JSON)")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher hands it over; so does the environment
    known, rest = parser.parse_pairs(argv)
    return load_config(known.config, parse_overrides(rest)), known.ds_config


def training_arguments(config: TrainConfig, ds_config: dict | None) -> TrainingArguments:
    """The Hugging Face arguments; creating them starts the process group and announces ZeRO-3 to model loading."""
    fields = {k: v for k, v in dataclasses.asdict(config.training).items() if k != "resume"}
    dtype = choose_dtype(config.model.dtype)
    if config.model.gradient_checkpointing:
        fields |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        **fields, deepspeed=ds_config, use_cpu=not torch.cuda.is_available(),
        bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
        report_to=[], remove_unused_columns=False, prediction_loss_only=True, label_names=["labels"],
        average_tokens_across_devices=True)


def load_model(config: TrainConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase,
               item_tokens: list[str], item_token_ids: list[int]) -> PreTrainedModel | PeftModel:
    """Base model, rows for new tokens, adapter, objective."""
    base = load_base(source, config.model)
    new_rows = add_item_tokens(base, tokenizer)
    if source.adapter and config.model.adapter == "none":
        raise InputError(f"model: {source.adapter} is an adapter and adapter is none: merge it first "
                         "(tools/merge_lora.py), or set adapter: lora")
    model: PreTrainedModel | PeftModel = base
    if source.adapter:
        model = load_adapter(base, source.adapter, is_trainable=True)
    elif config.model.adapter == "lora":
        learnt = code_ids(tokenizer, item_tokens if config.model.train_item_tokens else [])
        # A new row that was not trained would not be saved either.
        model = add_adapter(base, config.model, sorted({*new_rows, *learnt.values()}))
    if config.model.gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings give checkpointed layers nothing to differentiate otherwise
    attach_objective(model, config.objective, item_token_ids)
    zero3.register_token_rows(model)
    return model


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str], config: TrainConfig,
               source: ModelSource) -> None:
    num_added = add_codes(tokenizer, tokens)
    if num_added and source.adapter:
        raise InputError(
            f"{source.adapter}: {num_added} of {len(tokens)} semantic-ID tokens are unknown to it, "
            "and an adapter gets no new ones; expected the semantic IDs that it was trained with "
            "(its item_index.json), or a merged model")
    if num_added and config.model.adapter == "lora" and not config.model.train_item_tokens:
        raise InputError(f"train_item_tokens: false would leave {num_added} new semantic-ID tokens untrained and unsaved; "
                         "expected true unless the base model knows them already")


def continuation_collators(config: TrainConfig, task: RecommendationTask, builder: SampleBuilder) -> Callable[[Any], Any]:
    """What adds continuations and their rewards to a collator, where the objective looks at them."""
    if not vocabulary_objective(config.objective).needs_continuations:
        return lambda collate: collate
    if config.objective.reward_weight == 0:
        return functools.partial(ContinuationCollator, sasrec=None, trie=item_trie(builder))
    sasrec = SASRec.load(config.objective.sasrec, task.dataset.item_ids)
    return functools.partial(ContinuationCollator, sasrec=sasrec, trie=item_trie(builder))


def make_trainer(config: TrainConfig, task: RecommendationTask, builder: SampleBuilder, model: PreTrainedModel | PeftModel,
                 arguments: TrainingArguments, tokenizer: PreTrainedTokenizerBase, callbacks: Sequence[TrainerCallback] = (),
                 facts: Mapping[str, Any] | None = None) -> ILRecTrainer:
    """Samples in batches: of a number of samples, or by token budget, padded or flattened. facts: for checkpoints' manifests."""
    samples = task.training_samples(builder)
    log_sizes(model, samples, task)
    with_continuations = continuation_collators(config, task, builder)
    collate = batch_collate = IdentifiedCollator(with_continuations(TrainingCollator(tokenizer.pad_token_id)))
    sampler = None
    if config.data.max_tokens_per_batch:
        flash = model.config._attn_implementation == FLASH_ATTENTION
        flattened = is_flattened(config.data.batch_layout, flash)
        if flattened:
            check_flattening(model.config)
            batch_collate = IdentifiedCollator(with_continuations(flattening_collator(boundaries=flash)))
        sampler = TokenBudgetSampler(samples.num_tokens(), config.data.max_tokens_per_batch, flattened, config.training.seed,
                                     arguments.process_index, arguments.world_size)
        logger.info("%s micro-steps an epoch and rank, %.1f%% of the tokens processed are real", f"{len(sampler):,}",
                    100 * sampler.real_token_share)
    validation = EvaluationSamples(task.dataset, builder, "valid") if config.training.eval_strategy != "no" else None
    trainer = ILRecTrainer(model=model, args=arguments, train_dataset=samples, eval_dataset=validation, data_collator=collate,
                           processing_class=tokenizer, callbacks=list(callbacks), batch_sampler=sampler, batch_collator=batch_collate,
                           facts=facts)
    if trainer.is_world_process_zero():
        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(Path(config.training.output_dir) / "tensorboard"))))
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


def find_source(config: TrainConfig, task: RecommendationTask, arguments: TrainingArguments) -> ModelSource:
    """The model to start from; one from scratch or from GGUF is first written as a directory, by one process."""
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


def write_run_directory(config: TrainConfig, ds_config: dict | None, argv: list[str], task: RecommendationTask) -> None:
    directory = Path(config.training.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_yaml(directory / "config.yaml", config)
    if ds_config is not None:
        write_text(directory / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")
    task.write_item_index(directory / ITEM_INDEX)  # a checkpoint that is merged while the run goes on needs it
    write_text(directory / "environment.json", json.dumps(environment(argv) | {"data": task.dataset.fingerprint}, indent=2) + "\n")


def save_final(trainer: Trainer, config: TrainConfig, task: RecommendationTask, facts: Mapping[str, Any]) -> None:
    """final/: model or adapter, tokenizer, and what ranking needs to render users and items the same way; all of it or nothing."""
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
        return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad or not trainable_only)

    logger.info("%s users, %s items, %s training samples; %s parameters, %s trained",
                *(f"{n:,}" for n in (task.dataset.num_users, task.dataset.num_items, len(samples), count(False), count(True))))


def train(argv: list[str], variant: Mapping[str, Any] | None = None) -> int:
    """The exit status: 0, or STOPPED where a signal ended the run after a checkpoint.

    variant: as for run_identity.
    """
    config, ds_path = parse_arguments(argv)
    if rank() == 0:  # it alone makes the directory, and the launcher ends the others
        check_directory(config.training.output_dir)
    choose_attention(config.model.attn_implementation)  # a name that is none is said before anything starts
    ds_config = None
    if ds_path:
        zero3.prepare_environment()
        zero3.allow_state_classes()
        ds_config = zero3.read_ds_config(ds_path, config.flat(), choose_dtype(config.model.dtype), world_size())
    task = load_task(config.data)
    sources = places_read(config.model)  # a wrong path is said before anything starts
    with joining_ranks():
        arguments = training_arguments(config, ds_config)
        zero3.prepare_sharded_loading()
    unavailable = why_unavailable(config.objective.backend, arguments.device, torch.float32)
    if unavailable:
        raise InputError(f"backend: {unavailable}")
    lock = RunLock(config.training.output_dir) if rank() == 0 else None
    identity = run_identity(config, task, ds_config, arguments.world_size, variant)
    checkpoint = find_checkpoint(config.training.output_dir, config.training.resume, identity)
    set_aside(config.training.output_dir, checkpoint, sources)
    if checkpoint and ds_config is not None and ranks_of(checkpoint) != arguments.world_size:
        logger.warning("%s was written by %d ranks, now there are %d; let gradient_accumulation_steps keep the global batch as it was",
                       checkpoint, ranks_of(checkpoint), arguments.world_size)
        zero3.load_for_other_ranks(checkpoint, arguments)
    if lock:
        forget_unfinished(config.training.output_dir)
        write_run_directory(config, ds_config, argv, task)
    set_seed(config.training.seed)
    source = find_source(config, task, arguments)
    base = base_facts(source)
    if checkpoint:
        require_base(checkpoint, base)
    tokenizer = load_tokenizer(source, config.model.trust_remote_code)
    item_tokens = task.prompt.new_tokens()
    add_tokens(tokenizer, item_tokens, config, source)
    builder = task.sample_builder(tokenizer)
    model = load_model(config, source, tokenizer, item_tokens, builder.item_token_ids())
    with StopRequest() as stop, zero3.weights_only(checkpoint):
        facts = {"identity": identity, "base": base}
        trainer = make_trainer(config, task, builder, model, arguments, tokenizer, [stop], facts)
        trainer.train(resume_from_checkpoint=checkpoint)
        state = trainer.state
        if stop.is_stopping and state.global_step < state.max_steps:
            logger.warning("stopped after step %d of %d; the same command goes on", state.global_step, state.max_steps)
            return STOPPED
        save_final(trainer, config, task, facts)
    return 0


if __name__ == "__main__":
    run_entry(train)
