"""What decides the result of a run: its settings, and the contents of all that they name.

Checkpoints and final/ record it. A run that goes on from a checkpoint must share it; another one is
refused before anything is loaded (training/checkpoints.py). Of the settings it is every one but
MAY_CHANGE, of files their digest: where they lie does not count. Machine, versions and number of
ranks are no part of it: they move the numbers by rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ilrec.collaborative import sasrec
from ilrec.config.sections import TrainConfig, TrainingConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.interactions.dataset import fingerprint_of
from ilrec.model.loading import FLASH_ATTENTION, choose_attention, choose_dtype, is_materialised
from ilrec.model.source import find_model, local_directory
from ilrec.samples.batches import is_flattened
from ilrec.samples.task import RecommendationTask
from ilrec.training.together import agreed
from ilrec.training.zero3 import deciding_settings
from ilrec.weights.fingerprint import file_fingerprint, weights_fingerprint

# What a run that goes on from a checkpoint may be given anew. Every other field of
# ilrec/config/sections.py decides the result and is part of the identity, also one that is added
# later.
MAY_CHANGE = frozenset(
    {
        # paths: what lies there counts, by its digest
        "model",
        "base",
        "data",
        "semantic_ids",
        "sasrec",
        "output_dir",
        # how samples are cut into micro-steps and ranks: those of one optimizer step count,
        # together
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "batch_layout",
        # the same numbers but for rounding, by another way
        "attn_implementation",
        "gradient_checkpointing",
        "backend",
        "slab_mib",
        "dataloader_num_workers",
        # logging, saving, evaluation
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "eval_strategy",
        "eval_steps",
        "per_device_eval_batch_size",
        "resume",
        # the length of the run, where the schedule of the learning rate does not depend on it
        "max_steps",
        "num_train_epochs",
    }
)
# Schedules under which the learning rate of a step does not depend on how many there are.
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# In a model's JSON files: where it was, who wrote it last, and in what mode.
INCIDENTAL = (
    "_name_or_path",
    "base_model_name_or_path",
    "transformers_version",
    "peft_version",
    "inference_mode",
)


def run_identity(
    config: TrainConfig,
    task: RecommendationTask,
    ds_config: Mapping[str, Any] | None,
    world_size: int,
    variant: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{name: value}, JSON alone; of {"path", "sha256"} the digest is compared.

    Every rank calls it, and gets rank 0's contents. variant: what else decides the result, where
    another program than ilrec/train.py trains. Raises InputError where something that is named is
    not there.
    """
    dtype = str(choose_dtype(config.model.dtype)).removeprefix("torch.")
    deciding = {name: value for name, value in config.flat().items() if name not in MAY_CHANGE}
    identity = {
        **deciding,
        "dtype": dtype,
        **task.identity(),
        **agreed(lambda: contents(config)),
        **_length(config.training),
        **_batches(config, world_size),
        **deciding_settings(ds_config),
        **(variant or {}),
    }
    return json.loads(json.dumps(identity))


def contents(config: TrainConfig) -> dict[str, Any]:
    """Digests of the model that training starts from, and of the filter; None for what is not
    used."""
    found: dict[str, Any] = dict.fromkeys(
        ("base", "base_config", "adapter_weights", "adapter_config", "tokenizer", "gguf", "sasrec")
    )
    if config.objective.reward_weight:
        directory = Path(config.objective.sasrec)
        files = _present(directory, (sasrec.CONFIG, sasrec.WEIGHTS))
        found["sasrec"] = _named(directory, fingerprint_of(files))
    if config.model.init is not None:
        return found
    if is_materialised(config.model):
        path = config.model.model
        return found | {"gguf": _named(path, file_fingerprint(Path(path)))}
    source = find_model(config.model.model, config.model.base)
    base, adapter = local_directory(source.base), Path(source.adapter) if source.adapter else None
    tokenizer = adapter or base
    found |= {
        "base": _named(source.base, model_digest(base)),
        "base_config": _settings(base / "config.json"),
        "tokenizer": _named(tokenizer, fingerprint_of(_present(tokenizer, TOKENIZER_FILES))),
    }
    if adapter:
        found |= {
            "adapter_weights": _named(adapter, model_digest(adapter, "adapter_model")),
            "adapter_config": _settings(adapter / "adapter_config.json"),
        }
    return found


def model_digest(directory: Path, stem: str = "model") -> str:
    """Of a model's weights in whatever format; of a hub's repository without them here, its
    commit."""
    with contextlib.suppress(InputError):  # not in safetensors, or in a dtype that is not merged
        return weights_fingerprint(directory, stem)
    patterns = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
    files = sorted(file for pattern in patterns for file in directory.glob(pattern))
    digests = [(file.name, file_fingerprint(file)) for file in files]
    return hashlib.sha256(repr(digests or directory.name).encode()).hexdigest()


def base_origin(config: TrainConfig, task: RecommendationTask) -> dict[str, Any]:
    """What a model that is written into the run's directory (from scratch, from GGUF) is made
    of."""
    if config.model.init is None:
        return {"gguf": file_fingerprint(Path(config.model.model))}
    return {
        "init": config.model.init,
        "seed": config.training.seed,
        "item_format": config.data.item_format,
        "texts": {name: content["sha256"] for name, content in task.identity().items()},
    }


def _length(training: TrainingConfig) -> dict[str, Any]:
    """The last step, where the learning rate of the others depends on it."""
    by_share = 0 < training.warmup_steps < 1 and training.lr_scheduler_type != "constant"
    if training.lr_scheduler_type in OPEN_ENDED and not by_share:
        return {"max_steps": None, "num_train_epochs": None}
    if training.max_steps > 0:
        return {"max_steps": training.max_steps, "num_train_epochs": None}
    return {"max_steps": None, "num_train_epochs": training.num_train_epochs}


def _batches(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """What is in one optimizer step, over all ranks and micro-steps."""
    micro_steps = config.training.gradient_accumulation_steps * world_size
    if not config.data.max_tokens_per_batch:
        samples = micro_steps * config.training.per_device_train_batch_size
        return {"samples_per_step": samples, "micro_batches_per_step": None, "batch_layout": None}
    flash = choose_attention(config.model.attn_implementation) == FLASH_ATTENTION
    layout = "flattened" if is_flattened(config.data.batch_layout, flash) else "padded"
    return {"samples_per_step": None, "micro_batches_per_step": micro_steps, "batch_layout": layout}


def _named(path: str | Path, digest: str) -> dict[str, str]:
    return {"path": str(path), "sha256": digest}


def _present(directory: Path, names: Iterable[str]) -> list[Path]:
    return [directory / name for name in names if (directory / name).is_file()]


def _settings(path: Path) -> dict[str, str] | None:
    """A JSON file by what is in it; None where there is none, which loading the model says."""
    if not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name not in INCIDENTAL}
    return _named(path, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
