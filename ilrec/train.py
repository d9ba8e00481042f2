"""Train one stage: sft, stage1, stage2 or joint. A stage is a recipe and the model that it starts
from.

    # one process, without DeepSpeed
    ilrec train --config ilrec/recipes/sft.yaml --model MODEL --data DIR

    # two ranks, ZeRO-3
    deepspeed --num_gpus 2 ilrec/train.py --ds_config ds_configs/zero3_cpu.json \\
        --config ilrec/recipes/stage1.yaml --model runs/sft/final --data DIR

    # eight ranks, started by torchrun
    torchrun --nproc_per_node 8 ilrec/train.py --ds_config ds_configs/zero3_bf16.json \\
        --config ilrec/recipes/stage2.yaml --model runs/stage1/final --data DIR

--check reports what the same command would do, and what of it would be refused; it trains nothing
and writes nothing. Any field of a recipe may be given as --field value. The run directory
(--output_dir) explains itself: config.yaml, ds_config.json, environment.json, metrics.jsonl,
tensorboard/, checkpoint-*/ and final/.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import answer_help
from ilrec.config.parsers import CHECK, train_parser

if __name__ == "__main__":
    answer_help(train_parser(__doc__))

from transformers import TrainingArguments, set_seed

from ilrec.config.loading import load_config, parse_overrides
from ilrec.config.sections import TrainConfig
from ilrec.files.outputs import check_directory
from ilrec.model.loading import choose_attention, choose_dtype, load_tokenizer
from ilrec.processes import joining_ranks, rank, run_entry, world_size
from ilrec.samples.task import load_task
from ilrec.training import zero3
from ilrec.training.checkpoints import find_checkpoint, remove_unfinished
from ilrec.training.dry_run import dry_run
from ilrec.training.ds_config import read_ds_config
from ilrec.training.hub import is_published, publish_final
from ilrec.training.identity import run_identity
from ilrec.training.manifest import ranks_of
from ilrec.training.recorded_base import base_facts, require_base
from ilrec.training.run_directory import RunLock, save_final, set_aside, write_run_directory
from ilrec.training.setup import (
    add_tokens,
    check_backend,
    find_source,
    load_model,
    make_trainer,
    places_read,
    training_arguments,
)
from ilrec.training.stop import STOPPED, StopRequest
from ilrec.training.trackers import chosen_trackers
from ilrec.training.trainer import ILRecTrainer

logger = logging.getLogger("ilrec.train")


def parse_arguments(argv: list[str]) -> tuple[TrainConfig, str | None]:
    """(the resolved settings, the path of the DeepSpeed configuration). CHECK is passed over."""
    words = [word for word in argv if word != CHECK]
    own, rest = train_parser(__doc__).parse_pairs(words)
    return load_config(own.config, parse_overrides(rest)), own.ds_config


def train(argv: list[str]) -> int:
    """One run, from the command line to final/.

    Returns the exit status: 0, or STOPPED if a signal ended the run after a checkpoint.
    """
    # Mistakes of the user are found first, before any process group exists and before a model is
    # read. A refused run must cost seconds.
    config, ds_path = parse_arguments(argv)
    if CHECK in argv:
        return dry_run(config, ds_path)
    output_dir = config.training.output_dir
    if rank() == 0:  # Only rank 0 makes the directory. The launcher ends the others.
        check_directory(output_dir)
    choose_attention(config.model.attn_implementation)
    chosen_trackers(config.training)
    will_publish = is_published(config)
    ds_config = _read_deepspeed(ds_path, config)
    task = load_task(config.data)
    sources = places_read(config.model)

    # The ranks find each other. From here on, what one of them decides all must know.
    with joining_ranks():
        arguments = training_arguments(config, ds_config)
        zero3.prepare_sharded_loading()
    check_backend(config.objective, arguments.device)

    # The run directory: nobody else may be at work in it. The run continues the newest checkpoint
    # of the same run, and what another run left there is moved aside. The lock is held until the
    # process ends.
    lock = RunLock(output_dir) if rank() == 0 else None
    identity = run_identity(config, task, ds_config, arguments.world_size)
    checkpoint = find_checkpoint(output_dir, config.training.resume, identity)
    set_aside(output_dir, checkpoint, sources)
    if checkpoint and ds_config is not None:
        _allow_other_ranks(checkpoint, arguments)
    if lock is not None:
        remove_unfinished(output_dir)
        write_run_directory(config, ds_config, argv, task)

    # Model and samples. The seed comes first, because new rows and adapters are drawn at random.
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

    # Training itself. A signal stops all ranks after one and the same step.
    facts = {"identity": identity, "base": base}
    with StopRequest() as stop, zero3.weights_only(checkpoint):
        trainer = make_trainer(config, task, builder, model, arguments, tokenizer, [stop], facts)
        trainer.train(resume_from_checkpoint=checkpoint)
        if _was_stopped(trainer, stop):
            return STOPPED
        best = trainer.evaluation.best(trainer.state) if trainer.evaluation else None
        save_final(trainer, config, task, facts, best)
    if will_publish:
        publish_final(config)
    return 0


def _read_deepspeed(path: str | None, config: TrainConfig) -> dict | None:
    """The DeepSpeed configuration, checked against the settings; None for a run without it."""
    if not path:
        return None
    zero3.prepare_environment()
    zero3.allow_state_classes()
    return read_ds_config(path, config.flat(), choose_dtype(config.model.dtype), world_size())


def _allow_other_ranks(checkpoint: str, arguments: TrainingArguments) -> None:
    """DeepSpeed's shards belong to a number of ranks. For another one they are converted."""
    before = ranks_of(checkpoint)
    if before == arguments.world_size:
        return
    logger.warning(
        "%s was written by %d ranks, now there are %d; let gradient_accumulation_steps keep the "
        "global batch as it was",
        checkpoint,
        before,
        arguments.world_size,
    )
    zero3.load_for_other_ranks(checkpoint, arguments)


def _was_stopped(trainer: ILRecTrainer, stop: StopRequest) -> bool:
    """Whether a signal ended the run early. One that comes in the last step changes nothing."""
    state = trainer.state
    if not stop.is_stopping or state.global_step >= state.max_steps:
        return False
    logger.warning(
        "stopped after step %d of %d; the same command goes on", state.global_step, state.max_steps
    )
    return True


if __name__ == "__main__":
    run_entry(train)
