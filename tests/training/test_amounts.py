"""How much a training is: against rendered samples and collated batches, and memory by hand."""

import numpy as np
import pytest
import torch
from small_samples import dataset_of, make_builder
from torch import nn

from ilrec.config.loading import load_config
from ilrec.config.sections import TrainConfig
from ilrec.ops.row_slab import SLAB_BYTES
from ilrec.samples.builder import IGNORE_INDEX
from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.windows import TrainingWindows
from ilrec.training.amounts import (
    ModelSize,
    epoch_size,
    host_bytes,
    memory_parts,
    model_size,
    num_supervised_tokens,
    total_steps,
)

# The last two items of each user are held out, so that the third has no item to train on.
USERS = [[0, 1, 2, 3, 1, 0, 2], [3, 3, 1, 0, 0, 2, 1, 2, 3, 0], [0, 1, 2]]


def settings(**fields) -> TrainConfig:
    return load_config(None, {"model": "M", "data": "D", "output_dir": "O", **fields})


@pytest.mark.parametrize("kind", [TrainingSamples, TrainingWindows])
def test_supervised_tokens_are_those_that_have_labels(kind):
    builder = make_builder(max_history_items=3, every_item=kind is TrainingWindows)
    samples = kind(dataset_of(USERS), builder)
    labels = [samples[number]["labels"] for number in range(len(samples))]
    expected = sum(label != IGNORE_INDEX for row in labels for label in row)
    assert num_supervised_tokens(samples.sequences, builder) == expected


def test_an_epoch_of_batches_of_samples(monkeypatch):
    """4 + 7 = 11 samples. In batches of 3 these are 4 batches, the last of 2 samples; 2 for each of
    2 ranks, and with 2 accumulated 1 step."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    samples = TrainingSamples(dataset_of(USERS), make_builder())
    config = settings(per_device_train_batch_size=3, gradient_accumulation_steps=2, seed=5)
    epoch = epoch_size(config, samples, flattened=False)
    assert epoch.num_samples == 11
    assert epoch.samples_per_batch == (2, 3)
    assert (epoch.num_micro_steps, epoch.num_steps) == (2, 1)

    lengths = samples.num_tokens()
    order = np.random.default_rng(5).permutation(11)
    padded = [lengths[order[i : i + 3]].max() * len(order[i : i + 3]) for i in range(0, 11, 3)]
    assert epoch.tokens_per_batch == (min(padded), max(padded))
    assert epoch.real_token_share == pytest.approx(lengths.sum() / sum(padded))
    assert (epoch.num_tokens, epoch.longest) == (lengths.sum(), lengths.max())


def test_flattened_batches_have_no_padding():
    samples = TrainingSamples(dataset_of(USERS), make_builder())
    config = settings(max_tokens_per_batch=200)
    assert epoch_size(config, samples, flattened=True).real_token_share == 1
    # Without a token budget nothing is flattened, whatever the attention.
    assert epoch_size(settings(), samples, flattened=True).real_token_share < 1


def test_steps_of_the_run():
    samples = TrainingSamples(dataset_of(USERS), make_builder())
    config = settings(per_device_train_batch_size=2, num_train_epochs=1.4)
    epoch = epoch_size(config, samples, flattened=False)
    # 6 steps an epoch; 8.4 steps are 9.
    assert total_steps(config.training, epoch) == 9
    assert total_steps(settings(max_steps=5).training, epoch) == 5


def test_sizes_of_a_model():
    model = nn.ModuleDict({"lora_A": nn.Linear(3, 4, bias=False), "frozen": nn.Linear(5, 6)})
    model["frozen"].requires_grad_(False).to(torch.bfloat16)
    size = model_size(model)
    assert size == ModelSize(
        num_all=12 + 36,
        num_trained=12,
        num_lora=12,
        num_token_rows=0,
        largest_layer=36,
        frozen_bytes=72,
        trained_bytes=48,
    )


# 1,000 trained and 5,000 frozen parameters in 16 bits, the largest module of 2,000.
SIZE = ModelSize(6000, 1000, 1000, 0, 2000, frozen_bytes=10_000, trained_bytes=4000)


@pytest.mark.parametrize(
    ("zero", "trained", "frozen"),
    [
        # 20 bytes: weights 2, gradients 2 + 4, the float32 copy 4, moments 8. Nothing is divided.
        ({}, 20_000, 10_000),
        # Weights whole, 18 / 4 bytes of the rest; ZeRO-1 has whole 16-bit gradients, too.
        ({"stage": 1}, 2000 + 4500 + 2000, 10_000),
        ({"stage": 2}, 2000 + 4500, 10_000),
        # 18 / 4 bytes, and 4 bytes of the module that is gathered.
        ({"stage": 3}, 8000 + 4500, 2500),
        ({"stage": 3, "offload_param": {"device": "none"}}, 8000 + 4500, 2500),
    ],
)
def test_memory_of_each_zero_stage(zero, trained, frozen, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = memory_parts(SIZE, {"zero_optimization": zero}, settings().objective)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert [number for _, number in parts] == [trained, frozen, SLAB_BYTES[device]]
    assert host_bytes(SIZE, {"zero_optimization": zero}) == 0


def test_memory_with_offload(monkeypatch):
    """On two machines of two ranks. DeepSpeed's factor for its buffers is 1.5."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    parts = memory_parts(SIZE, {"zero_optimization": zero}, settings().objective)
    assert [number for _, number in parts][:2] == [8000, 0]
    assert host_bytes(SIZE, {"zero_optimization": zero}) == 18 * 1000 / 2 * 1.5 + 5000


def test_memory_without_deepspeed():
    parts = memory_parts(SIZE, None, settings(slab_mib=3).objective)
    assert [number for _, number in parts] == [14_000, 12_000, 3 * 2**20]
