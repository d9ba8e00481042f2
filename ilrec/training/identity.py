"""A run's identity: everything that decides its result.

That is every setting except those in MAY_CHANGE, and the contents of all files that the settings
name. Where the files lie does not count. Machine, versions and number of ranks are no part of it,
because they change the numbers only by rounding.

Checkpoints and final/ record the identity. A run may continue a checkpoint only if both have the
same one; another run's checkpoint is refused before anything is loaded (manifest.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ilrec.collaborative import sasrec
from ilrec.config.evaluation import EvaluationConfig
from ilrec.config.sections import TrainConfig, TrainingConfig
from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of, text_digest
from ilrec.files.reading import read_json
from ilrec.model.loading import FLASH_ATTENTION, choose_attention, choose_dtype, is_materialised
from ilrec.model.source import find_model, local_directory
from ilrec.samples.batches import is_flattened
from ilrec.samples.task import RecommendationTask
from ilrec.training.ds_config import deciding_settings
from ilrec.training.together import agreed
from ilrec.weights.fingerprint import file_fingerprint, weights_fingerprint

# The settings that may differ between a checkpoint and the run that continues it. Every other field
# of ilrec/config/sections.py is part of the identity, also a field that is added later, and so is
# every other field of transformers.TrainingArguments that is given.
MAY_CHANGE = frozenset(
    {
        # Paths. The digest of what lies there counts instead.
        "model",
        "base",
        "data",
        "semantic_ids",
        "sasrec",
        "output_dir",
        # How the samples of one optimizer step are divided among micro-steps and ranks. All samples
        # of the step together count instead.
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "batch_layout",
        # Another way to the same numbers, except for rounding.
        "attn_implementation",
        "gradient_checkpointing",
        "backend",
        "slab_mib",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "torch_empty_cache_steps",
        "tf32",
        "full_determinism",
        "ddp_bucket_cap_mb",
        "ddp_timeout",
        "ddp_backend",
        # Logging and saving.
        "logging_steps",
        "logging_strategy",
        "logging_first_step",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "include_num_input_tokens_seen",
        "run_name",
        "project",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "report_to",
        "resume",
        # HUB_FIELDS of ilrec/config/training_arguments.py.
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        # Evaluation. It counts if it chooses the weights of final/.
        "eval_on_start",
        "eval_strategy",
        "eval_steps",
        "eval_metric",
        "eval_users",
        "per_device_eval_batch_size",
        # The length of the run. It counts if the learning rate depends on it.
        "max_steps",
        "num_train_epochs",
        "early_stopping_patience",
    }
)
# Schedules under which the learning rate of a step does not depend on the number of steps.
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
# Fields of a model's JSON files that do not change the model: where it was, which versions wrote it
# last, and in what mode.
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
    """{name: value}, as a manifest records it. Of {"path", "sha256"} only the digest counts.

    Every rank calls it; the contents of files are those that rank 0 reads. variant: what else
    decides the result if a program other than ilrec/train.py trains. Raises InputError if something
    that the settings name is missing.
    """
    dtype = str(choose_dtype(config.model.dtype)).removeprefix("torch.")
    deciding = {name: value for name, value in config.flat().items() if name not in MAY_CHANGE}
    others = {name: deciding.pop(name) for name in config.training_arguments.keys() - MAY_CHANGE}
    identity = {
        **deciding,
        "training_arguments": others,
        "dtype": dtype,
        **task.identity(),
        **agreed(lambda: contents(config)),
        **_length(config.training),
        **_choice(config.evaluation),
        **_batches(config, world_size),
        **deciding_settings(ds_config),
        **(variant or {}),
    }
    # As it will be read again from a manifest, where a tuple is a list.
    return json.loads(json.dumps(identity))


def contents(config: TrainConfig) -> dict[str, Any]:
    """Digests of the model that training starts from, and of the collaborative filter.

    None for what is not used.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("base", "base_config", "adapter_weights", "adapter_config", "tokenizer", "gguf", "sasrec")
    )

    # The filter counts only if the loss uses it.
    if config.objective.reward_weight:
        directory = Path(config.objective.sasrec)
        files = _present(directory, (sasrec.CONFIG, sasrec.WEIGHTS))
        # Those of its folds, if it has any.
        files += sorted(directory.glob(f"fold-*/{sasrec.WEIGHTS}"))
        found["sasrec"] = _named(directory, fingerprint_of(files))

    # A model from scratch follows from `init` and `seed`, which are settings.
    if config.model.init is not None:
        return found
    if is_materialised(config.model):
        path = config.model.model
        return found | {"gguf": _named(path, file_fingerprint(Path(path)))}

    # A model directory, with or without an adapter on it.
    source = find_model(config.model.model, config.model.base)
    base = local_directory(source.base)
    adapter = Path(source.adapter) if source.adapter else None
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
    """A digest of a model's weights, in any format.

    If the weights of a hub's repository are not on this machine, the digest is that of its commit,
    which is the name of the directory.
    """
    # Fails for weights that are not in safetensors, or in a dtype that is not merged.
    with contextlib.suppress(InputError):
        return weights_fingerprint(directory, stem)
    files: list[Path] = []
    for pattern in ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin"):
        files += directory.glob(pattern)
    digests = [(file.name, file_fingerprint(file)) for file in sorted(files)]
    return text_digest(repr(digests or directory.name))


def base_origin(config: TrainConfig, task: RecommendationTask) -> dict[str, Any]:
    """What decides a model that is written into the run's directory (from scratch, from GGUF)."""
    if config.model.init is None:
        return {"gguf": file_fingerprint(Path(config.model.model))}
    return {
        "init": config.model.init,
        "seed": config.training.seed,
        "item_format": config.data.item_format,
        "texts": {name: content["sha256"] for name, content in task.identity().items()},
    }


def _length(training: TrainingConfig) -> dict[str, Any]:
    """The length of the run, if the learning rate depends on it; else None for both fields."""
    # A warm-up that is a share of all steps depends on their number, too.
    by_share = 0 < training.warmup_steps < 1 and training.lr_scheduler_type != "constant"
    if training.lr_scheduler_type in OPEN_ENDED and not by_share:
        return {"max_steps": None, "num_train_epochs": None}
    if training.max_steps > 0:
        return {"max_steps": training.max_steps, "num_train_epochs": None}
    return {"max_steps": None, "num_train_epochs": training.num_train_epochs}


def _choice(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What chooses the weights of final/: which evaluations there are. None for each field if it is
    the last step that counts."""
    names = ("eval_strategy", "eval_metric", "eval_users")
    chosen = {name: getattr(evaluation, name) if evaluation.save_best else None for name in names}
    by_steps = evaluation.save_best and evaluation.eval_strategy == "steps"
    return chosen | {"eval_steps": evaluation.eval_steps if by_steps else None}


def _batches(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """How much is in one optimizer step, over all ranks and micro-steps."""
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
    """A JSON file by its content, without incidental fields.

    None if it is missing; loading the model reports that.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name not in INCIDENTAL}
    return _named(path, text_digest(json.dumps(content, sort_keys=True)))
