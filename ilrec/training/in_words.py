"""What a training would do, in words: the groups of `--check`'s report, a list of lines each."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ilrec.config.sections import TrainConfig
from ilrec.model.loading import choose_dtype, is_materialised
from ilrec.model.source import ModelSource
from ilrec.processes import world_size
from ilrec.samples.builder import IGNORE_INDEX
from ilrec.samples.task import RecommendationTask
from ilrec.training.amounts import (
    EpochSize,
    ModelSize,
    Samples,
    host_bytes,
    memory_parts,
    total_epochs,
    total_steps,
)
from ilrec.training.manifest import ranks_of


def data_lines(task: RecommendationTask) -> list[str]:
    data = task.dataset
    lengths_U = data.sequences.lengths
    return [
        f"{task.config.data}: {data.num_users:,} users, {data.num_items:,} items, "
        f"{int(lengths_U.sum()):,} interactions",
        f"a user has {lengths_U.min():,} to {lengths_U.max():,} items, {lengths_U.mean():.1f} on "
        f"average; users left out because they have too few: {data.num_dropped_users:,}",
    ]


def epoch_lines(config: TrainConfig, epoch: EpochSize) -> list[str]:
    training = config.training
    num_epochs = total_epochs(training, epoch)
    fewest, most = epoch.samples_per_batch
    smallest, largest = epoch.tokens_per_batch
    return [
        f"{epoch.num_samples:,} training samples ({config.data.supervision}) of "
        f"{epoch.num_tokens / epoch.num_samples:.1f} tokens on average, the longest has "
        f"{epoch.longest:,}",
        f"tokens an epoch: {epoch.num_tokens:,}, of which {epoch.num_supervised:,} are supervised",
        f"a micro-batch: {fewest:,} to {most:,} samples, {smallest:,} to {largest:,} tokens with "
        f"padding; {epoch.real_token_share:.1%} of an epoch's tokens are real",
        f"an optimizer step: {training.gradient_accumulation_steps} micro-batches on each of "
        f"{world_size()} rank(s)",
        f"optimizer steps an epoch: {epoch.num_steps:,}",
        f"in all: {total_steps(training, epoch):,} steps, {num_epochs:.2f} epochs, "
        f"{round(num_epochs * epoch.num_tokens):,} tokens",
    ]


def sample_lines(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The sample of median length, as text and as ids."""
    num_tokens_S = samples.num_tokens()
    median = int(np.argsort(num_tokens_S, kind="stable")[len(num_tokens_S) // 2])
    sample = samples[median]
    text, ids = rendered(sample["input_ids"], sample["labels"], tokenizer)
    return [
        f"number {median:,}, of median length; supervised tokens stand >>so<< in the text and have "
        "a * among the ids",
        *text.splitlines(),
        ids,
    ]


def rendered(
    input_ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str]:
    """(the text, the ids) of a sample, with its supervised tokens marked."""
    pairs = list(zip(input_ids, labels, strict=True))
    text = ""
    for supervised, run in itertools.groupby(pairs, lambda pair: pair[1] != IGNORE_INDEX):
        part = str(tokenizer.decode([token for token, _ in run]))
        text += f">>{part}<<" if supervised else part
    ids = [f"{token}{'*' * (label != IGNORE_INDEX)}" for token, label in pairs]
    return text, " ".join(ids)


def model_lines(config: TrainConfig, source: ModelSource, size: ModelSize) -> list[str]:
    num_other = size.num_trained - size.num_lora - size.num_token_rows
    kinds = {"LoRA": size.num_lora, "token rows": size.num_token_rows, "others": num_other}
    parts = [f"{name} {number:,}" for name, number in kinds.items() if number]
    where = source.adapter or source.base
    if is_materialised(config.model):
        where = config.model.model or "made from scratch (init)"
    return [
        f"{where}, {choose_dtype(config.model.dtype)}",
        f"{size.num_all:,} parameters, {size.num_trained:,} trained "
        f"({size.num_trained / size.num_all:.2%}): {', '.join(parts)}",
    ]


def memory_lines(config: TrainConfig, size: ModelSize, ds_config: dict | None) -> list[str]:
    """Of one rank, on its device."""
    parts = memory_parts(size, ds_config, config.objective)
    how = "without DeepSpeed"
    if ds_config is not None:
        how = f"ZeRO-{ds_config.get('zero_optimization', {}).get('stage', 0)}"
    lines = [f"{what}: {_mib(num_bytes)}" for what, num_bytes in parts]
    total = sum(num_bytes for _, num_bytes in parts)
    lines.append(f"together on each of {world_size()} rank(s), {how}: {_mib(total)}")
    if offloaded := host_bytes(size, ds_config):
        lines.append(f"offloaded to each machine's own memory: {_mib(offloaded)}")
    return [*lines, "not counted: activations, buffers of collective operations, the libraries"]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def start_lines(output_dir: str, start: str | None, moved: list[Path]) -> list[str]:
    """start: the checkpoint to go on from. moved: what an earlier run left."""
    lines = [f"{output_dir}: a fresh start"]
    if start:
        lines = [f"{output_dir}: goes on from {start}, written by {ranks_of(start)} rank(s)"]
    if moved:
        names = ", ".join(path.name for path in moved)
        lines.append(f"moved to earlier-N in it, because another run left them: {names}")
    return lines
