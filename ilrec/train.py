"""Train one stage: sft, stage1, stage2 or joint; a stage is a recipe and the model that it starts
from.

    python ilrec/train.py --config ilrec/recipes/sft.yaml --data DIR --output_dir runs/sft
    # one process, no DeepSpeed deepspeed --num_gpus 2 ilrec/train.py --ds_config
        ds_configs/zero3_cpu.json --config ilrec/recipes/stage1.yaml \\ --model runs/sft/final
        --data DIR --output_dir runs/stage1
    torchrun --nproc_per_node 8 ilrec/train.py --ds_config ds_configs/zero3_bf16.json --config
    ilrec/recipes/stage2.yaml ...

Any field of a recipe may be given as --field value. The run directory explains itself: config.yaml,
ds_config.json, environment.json, metrics.jsonl, tensorboard/, checkpoint-*/ and final/.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from transformers import set_seed

if __package__ in (
    None,
    "",
):  # started as a file: ilrec/ itself is first on sys.path, its parent must be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import load_config, parse_overrides
from ilrec.config.sections import TrainConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.model.loading import choose_attention, choose_dtype, load_tokenizer
from ilrec.ops.backends import why_unavailable
from ilrec.processes import joining_ranks, rank, run_entry, world_size
from ilrec.samples.task import load_task
from ilrec.training import zero3
from ilrec.training.checkpoints import (
    RunLock,
    find_checkpoint,
    forget_unfinished,
    ranks_of,
    require_base,
    set_aside,
)
from ilrec.training.identity import run_identity
from ilrec.training.setup import (
    add_tokens,
    base_facts,
    find_source,
    load_model,
    make_trainer,
    places_read,
    save_final,
    training_arguments,
    write_run_directory,
)
from ilrec.training.stop import STOPPED, StopRequest

logger = logging.getLogger("ilrec.train")


def parse_arguments(argv: list[str]) -> tuple[TrainConfig, str | None]:
    """The resolved settings and the DeepSpeed configuration's path."""
    parser = ArgumentParser(
        __doc__, epilog="The fields, with help and defaults: ilrec/config/sections.py"
    )
    parser.add_argument("--config", help="recipe (YAML)")
    parser.add_argument(
        "--ds_config", "--deepspeed", dest="ds_config", help="DeepSpeed configuration (JSON)"
    )
    parser.add_argument(
        "--local_rank", help=argparse.SUPPRESS
    )  # the deepspeed launcher hands it over; so does the environment
    known, rest = parser.parse_pairs(argv)
    return load_config(known.config, parse_overrides(rest)), known.ds_config


def train(argv: list[str]) -> int:
    """The exit status: 0, or STOPPED where a signal ended the run after a checkpoint."""
    config, ds_path = parse_arguments(argv)
    if rank() == 0:  # it alone makes the directory, and the launcher ends the others
        check_directory(config.training.output_dir)
    choose_attention(
        config.model.attn_implementation
    )  # a name that is none is said before anything starts
    ds_config = None
    if ds_path:
        zero3.prepare_environment()
        zero3.allow_state_classes()
        ds_config = zero3.read_ds_config(
            ds_path, config.flat(), choose_dtype(config.model.dtype), world_size()
        )
    task = load_task(config.data)
    sources = places_read(config.model)  # a wrong path is said before anything starts
    with joining_ranks():
        arguments = training_arguments(config, ds_config)
        zero3.prepare_sharded_loading()
    objective = config.objective
    unavailable = why_unavailable(
        objective.backend, arguments.device, torch.float32, objective.negatives_from
    )
    if unavailable:
        raise InputError(f"backend: {unavailable}")
    lock = RunLock(config.training.output_dir) if rank() == 0 else None
    identity = run_identity(config, task, ds_config, arguments.world_size)
    checkpoint = find_checkpoint(config.training.output_dir, config.training.resume, identity)
    set_aside(config.training.output_dir, checkpoint, sources)
    if checkpoint and ds_config is not None and ranks_of(checkpoint) != arguments.world_size:
        logger.warning(
            "%s was written by %d ranks, now there are %d; let gradient_accumulation_steps keep the global batch as it was",
            checkpoint,
            ranks_of(checkpoint),
            arguments.world_size,
        )
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
            logger.warning(
                "stopped after step %d of %d; the same command goes on",
                state.global_step,
                state.max_steps,
            )
            return STOPPED
        save_final(trainer, config, task, facts)
    return 0


if __name__ == "__main__":
    run_entry(train)
