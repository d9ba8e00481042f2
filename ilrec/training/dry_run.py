"""`--check`: all that a training does before its first step, without weights, process group or
output, and a report of what it would do.

The steps are the training's own (setup.py and what ilrec/train.py calls). After one that is refused
the others go on as far as they do not need its result, so that all refusals are known at once.
"""

from __future__ import annotations

import functools
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilrec.collaborative.cross_fitting import RewardFilter
from ilrec.config.described import objective_lines
from ilrec.config.sections import TrainConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.model.loading import (
    FLASH_ATTENTION,
    choose_attention,
    choose_dtype,
    is_materialised,
    load_base,
    load_tokenizer,
    skeleton_base,
    write_skeleton,
)
from ilrec.model.source import ModelSource, find_model
from ilrec.processes import BAD_INPUT, rank, world_size
from ilrec.samples.batches import is_flattened
from ilrec.samples.task import RecommendationTask, load_task
from ilrec.training import setup
from ilrec.training.amounts import (
    EpochSize,
    Samples,
    epoch_size,
    model_size,
    total_steps,
)
from ilrec.training.checkpoints import find_checkpoint, step_of
from ilrec.training.ds_config import read_ds_config
from ilrec.training.hub import is_published
from ilrec.training.identity import run_identity
from ilrec.training.in_words import (
    data_lines,
    epoch_lines,
    memory_lines,
    model_lines,
    sample_lines,
    start_lines,
)
from ilrec.training.recorded_base import base_facts, require_base
from ilrec.training.run_directory import check_unlocked, outdated
from ilrec.training.trackers import chosen_trackers
from ilrec.training.trainer import require_steps_left

# What a step gives that was refused, or that needs one that was.
REFUSED: Any = object()
# Paths and rendered text must stay as they are.
LAYOUT = textwrap.TextWrapper(
    width=100,
    initial_indent="  ",
    subsequent_indent="    ",
    break_long_words=False,
    break_on_hyphens=False,
)


def dry_run(config: TrainConfig, ds_path: str | None) -> int:
    """Print what this training would do, and what of it would be refused.

    Returns the exit status: 0, or BAD_INPUT if anything would be refused. Rank 0 does all of it,
    before any process group exists.
    """
    if rank() != 0:
        return 0
    with tempfile.TemporaryDirectory(prefix="ilrec-check-") as scratch:
        return DryRun(config, ds_path, Path(scratch)).report()


class DryRun:
    """One dry run. scratch: an empty directory for what a training would write."""

    def __init__(self, config: TrainConfig, ds_path: str | None, scratch: Path) -> None:
        self.config = config
        self.ds_path = ds_path
        self.scratch = scratch
        self.refusals: list[str] = []

    def attempt(self, step: Callable[..., Any], *needed: Any) -> Any:
        """step(*needed). REFUSED if it raises InputError, or if something needed was refused."""
        if any(value is REFUSED for value in needed):
            return REFUSED
        try:
            return step(*needed)
        except InputError as error:
            if str(error) not in self.refusals:
                self.refusals.append(str(error))
            return REFUSED

    def report(self) -> int:
        """Take all steps, and print each group of the report when it is known."""
        config = self.config
        output_dir = config.training.output_dir
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        place = self.attempt(self._check_place)
        self.attempt(setup.check_backend, config.objective, device)
        attention = self.attempt(choose_attention, config.model.attn_implementation)
        self.attempt(chosen_trackers, config.training)
        self.attempt(is_published, config)
        ds_config = self.attempt(self._read_deepspeed)
        task = self.attempt(load_task, config.data)
        sources = self.attempt(setup.places_read, config.model)
        self._print("Data", self.attempt(data_lines, task))
        self._print("Objective", objective_lines(config.objective))

        self.attempt(self._load_filter, task)
        source = self.attempt(self._source, task, sources)
        tokenizer = self.attempt(self._tokenizer, source, task)
        samples = self.attempt(self._samples, task, tokenizer)
        epoch = self.attempt(self._epoch, samples, attention)
        self._print("Samples and steps", self.attempt(epoch_lines, config, epoch))
        self._print("One sample", self.attempt(sample_lines, samples, tokenizer))

        model = self.attempt(self._model, source, tokenizer, task, attention)
        size = self.attempt(model_size, model)
        self._print("Model", self.attempt(model_lines, config, source, size))
        self._print("Memory", self.attempt(memory_lines, config, size, ds_config))

        start = self.attempt(self._start, task, ds_config, source, attention, place)
        self.attempt(self._steps_left, start, epoch)
        moved = self.attempt(outdated, Path(output_dir), start, sources)
        self._print("Run directory", self.attempt(start_lines, output_dir, start, moved))
        return self._conclude()

    def _print(self, title: str, lines: list[str]) -> None:
        print(f"\n{title}")
        if lines is REFUSED:
            lines = ["not known, because of what is refused below"]
        for line in lines:
            print(LAYOUT.fill(line), flush=True)

    def _conclude(self) -> int:
        if self.refusals:
            print(f"\nRefused ({len(self.refusals)})")
        for refusal in self.refusals:
            print(f"  error: {refusal}")
        if not self.refusals:
            print("\nNothing of this is refused.")
        print("Nothing was trained or written.", flush=True)
        return BAD_INPUT if self.refusals else 0

    def _check_place(self) -> None:
        check_directory(self.config.training.output_dir)
        check_unlocked(self.config.training.output_dir)

    def _read_deepspeed(self) -> dict | None:
        if not self.ds_path:
            return None
        dtype = choose_dtype(self.config.model.dtype)
        return read_ds_config(self.ds_path, self.config.flat(), dtype, world_size())

    def _load_filter(self, task: RecommendationTask) -> None:
        objective = self.config.objective
        if objective.reward_weight:
            dataset = task.dataset
            RewardFilter.load(objective.sasrec, dataset.item_ids, str(dataset.rule))

    def _source(self, task: RecommendationTask, sources: list[str]) -> ModelSource:
        config = self.config
        if not is_materialised(config.model):
            return setup.named_source(config.model, task)
        texts = (task.prompt.item_text(item) for item in range(task.dataset.num_items))
        write_skeleton(config.model, self.scratch, texts, config.training.seed)
        return find_model(str(self.scratch))

    def _tokenizer(self, source: ModelSource, task: RecommendationTask) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(source, self.config.model.trust_remote_code)
        setup.add_tokens(tokenizer, task.prompt.new_tokens(), self.config, source)
        return tokenizer

    def _samples(self, task: RecommendationTask, tokenizer: PreTrainedTokenizerBase) -> Samples:
        return task.training_samples(task.sample_builder(tokenizer))

    def _epoch(self, samples: Samples, attention: str) -> EpochSize:
        layout = self.config.data.batch_layout
        return epoch_size(self.config, samples, is_flattened(layout, attention == FLASH_ATTENTION))

    def _model(
        self,
        source: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        task: RecommendationTask,
        attention: str,
    ) -> PreTrainedModel | PeftModel:
        """The model that would be trained, on "meta"."""
        config = self.config
        load: Callable[..., PreTrainedModel] = functools.partial(load_base, device="meta")
        if is_materialised(config.model):
            load = skeleton_base
        # It is never called, so that it need not know which tokens occur in an item.
        model = setup.load_model(config, source, tokenizer, task.prompt.new_tokens(), [], load)
        if config.data.max_tokens_per_batch:
            setup.flattens(config, model)
        return model

    def _start(
        self,
        task: RecommendationTask,
        ds_config: dict | None,
        source: ModelSource,
        attention: str,
        place: None,
    ) -> str | None:
        """The checkpoint from which the run would go on."""
        config = self.config
        identity = run_identity(config, task, ds_config, world_size())
        checkpoint = find_checkpoint(config.training.output_dir, config.training.resume, identity)
        # What is made from scratch or from GGUF is not there yet, and cannot be compared.
        if checkpoint and not is_materialised(config.model):
            require_base(checkpoint, base_facts(source))
        return checkpoint

    def _steps_left(self, start: str | None, epoch: EpochSize) -> None:
        if start:
            last = total_steps(self.config.training, epoch)
            require_steps_left(self.config.training.output_dir, step_of(Path(start)), last)
