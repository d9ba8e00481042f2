"""How much a training is, before it runs: samples, tokens and steps, parameters, and memory.

Nothing here renders a sample or reads a weight. Shapes: S samples, B batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ilrec.config.sections import ObjectiveConfig, TrainConfig, TrainingConfig
from ilrec.interactions.ragged import Ragged
from ilrec.ops import row_slab
from ilrec.processes import world_size
from ilrec.samples.batches import TokenBudgetSampler
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.windows import TrainingWindows
from ilrec.training import zero3

Samples = TrainingSamples | TrainingWindows


@dataclass(frozen=True)
class EpochSize:
    """One pass over the training samples.

    samples_per_batch, tokens_per_batch: (smallest, largest) micro-batch of a rank, padding
    included. real_token_share: of all tokens in the batches, those that are no padding.
    num_micro_steps: of one rank. num_steps: optimizer steps.
    """

    num_samples: int
    num_tokens: int
    num_supervised: int
    longest: int
    samples_per_batch: tuple[int, int]
    tokens_per_batch: tuple[int, int]
    real_token_share: float
    num_micro_steps: int
    num_steps: int


def epoch_size(config: TrainConfig, samples: Samples, flattened: bool) -> EpochSize:
    """flattened: whether batches by token budget are flattened.

    Raises InputError if the budget is too small for a sample, or the samples too few for the ranks.
    """
    num_tokens_S = samples.num_tokens()
    flattened = flattened and config.data.max_tokens_per_batch > 0
    rng = np.random.default_rng(config.training.seed)
    if config.data.max_tokens_per_batch:
        budget, seed = config.data.max_tokens_per_batch, config.training.seed
        sampler = TokenBudgetSampler(num_tokens_S, budget, flattened, seed, 0, world_size())
        batches = sampler.plan.batches(num_tokens_S, rng)
        num_micro_steps = len(sampler)
    else:
        # As the Trainer does: batches of equally many samples in random order, divided among the
        # ranks. Which samples come together differs by epoch, and with it the padding.
        order_S = rng.permutation(len(num_tokens_S))
        size = config.training.per_device_train_batch_size
        batches = np.split(order_S, np.arange(size, len(order_S), size))
        num_micro_steps = math.ceil(len(batches) / world_size())

    sizes_B = np.array([len(batch) for batch in batches])
    ordered_S = num_tokens_S[np.concatenate(batches)].astype(np.int64)
    begins_B = np.cumsum(sizes_B) - sizes_B
    if flattened:
        tokens_B = np.add.reduceat(ordered_S, begins_B)
    else:
        tokens_B = sizes_B * np.maximum.reduceat(ordered_S, begins_B)
    return EpochSize(
        num_samples=len(num_tokens_S),
        num_tokens=int(ordered_S.sum()),
        num_supervised=num_supervised_tokens(samples.sequences, samples.builder),
        longest=int(ordered_S.max()),
        samples_per_batch=(int(sizes_B.min()), int(sizes_B.max())),
        tokens_per_batch=(int(tokens_B.min()), int(tokens_B.max())),
        real_token_share=float(ordered_S.sum() / tokens_B.sum()),
        num_micro_steps=num_micro_steps,
        num_steps=math.ceil(num_micro_steps / config.training.gradient_accumulation_steps),
    )


def num_supervised_tokens(sequences: Ragged, builder: SampleBuilder) -> int:
    """Each item of a training sequence but the first is a target once, however it is rendered."""
    costs_I = builder.item_ids.lengths + len(builder.end)
    before_E1 = np.concatenate([[0], np.cumsum(costs_I[sequences.values])])
    firsts = np.minimum(sequences.starts + 1, sequences.ends)
    return int((before_E1[sequences.ends] - before_E1[firsts]).sum())


def total_steps(training: TrainingConfig, epoch: EpochSize) -> int:
    """Optimizer steps of the whole run, as the Trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    return math.ceil(training.num_train_epochs * epoch.num_steps)


def total_epochs(training: TrainingConfig, epoch: EpochSize) -> float:
    """Passes over the samples in the whole run. An epoch's last step may have fewer micro-steps."""
    whole, rest = divmod(total_steps(training, epoch), epoch.num_steps)
    return whole + rest * training.gradient_accumulation_steps / epoch.num_micro_steps


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the bytes of all frozen and of all trained ones.

    largest_layer: parameters of the module that has most of its own.
    """

    num_all: int
    num_trained: int
    num_lora: int
    num_token_rows: int
    largest_layer: int
    frozen_bytes: int
    trained_bytes: int


def model_size(model: nn.Module) -> ModelSize:
    """model: may be on "meta"; not sharded."""
    num_all = num_trained = num_lora = num_token_rows = frozen_bytes = trained_bytes = 0
    for name, parameter in model.named_parameters():
        num_all += parameter.numel()
        if not parameter.requires_grad:
            frozen_bytes += parameter.nbytes
            continue
        num_trained += parameter.numel()
        trained_bytes += parameter.nbytes
        # The names that peft gives.
        if "lora_" in name:
            num_lora += parameter.numel()
        elif "trainable_tokens_" in name:
            num_token_rows += parameter.numel()
    layers = [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]
    return ModelSize(
        num_all, num_trained, num_lora, num_token_rows, max(layers), frozen_bytes, trained_bytes
    )


def memory_parts(
    size: ModelSize, ds_config: Mapping[str, Any] | None, objective: ObjectiveConfig
) -> list[tuple[str, int]]:
    """[(what it is for, bytes on the device of one rank)]; activations are not among them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    if ds_config is None:
        # The gradients and AdamW's two moments have the dtype of the parameters.
        parts.append(("all weights", size.frozen_bytes + size.trained_bytes))
        parts.append(("gradients and AdamW's two moments", 3 * size.trained_bytes))
    else:
        zero = ds_config.get("zero_optimization", {})
        _, trained = _estimate(size, zero)
        parts.append(("trained parameters, by DeepSpeed's estimator for 16-bit weights", trained))
        parts.append(_frozen_part(size.frozen_bytes, zero))
    if objective.backend == "reference":
        return parts  # Whole logits of all tokens: no bound is known before the first batch.
    slab = objective.slab_mib * 2**20 or row_slab.default_slab_bytes(device)
    return [*parts, ("logits of the vocabulary operation, at most", slab)]


def host_bytes(size: ModelSize, ds_config: Mapping[str, Any] | None) -> int:
    """What one machine holds in its own memory because DeepSpeed moves it there; 0: nothing."""
    zero = (ds_config or {}).get("zero_optimization", {})
    if not zero3.is_offloaded(zero, "offload_optimizer"):
        return 0
    host, _ = _estimate(size, zero)
    if zero3.is_offloaded(zero, "offload_param"):
        host += math.ceil(size.frozen_bytes / _machines()[1])
    return host


def _estimate(size: ModelSize, zero: Mapping[str, Any]) -> tuple[int, int]:
    return zero3.estimated_states(zero, size.num_trained, size.largest_layer, *_machines())


def _frozen_part(num_bytes: int, zero: Mapping[str, Any]) -> tuple[str, int]:
    """DeepSpeed's estimators take every parameter for a trained one. These are their weights
    alone."""
    if zero.get("stage", 0) < 3:
        return "frozen weights, whole on each rank", num_bytes
    if zero3.is_offloaded(zero, "offload_param"):
        return "frozen weights (offload_param moves them away)", 0
    return "frozen weights, this rank's shard", math.ceil(num_bytes / world_size())


def _machines() -> tuple[int, int]:
    """(ranks of a machine, machines), as torchrun or deepspeed has set them."""
    set_by_launcher = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    per_machine = int(set_by_launcher or world_size())
    return per_machine, math.ceil(world_size() / per_machine)
