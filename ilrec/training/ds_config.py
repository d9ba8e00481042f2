"""DeepSpeed's configuration file (--ds_config): read, compared with the recipe, and the part of it
that decides a run's result.

Everything here runs before any process group exists, so that a mistake costs seconds. deepspeed is
imported inside one function only: a run without it does not need it installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ilrec.errors import InputError
from ilrec.files.reading import read_json

# Keys that DeepSpeed and the recipe both know: {key: the setting that it must agree with}.
BATCH_KEYS = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
# {key: fields that have no effect if the file has it}
REPLACED = {"optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler_kwargs",)}
# Keys that change the result by rounding at most (logging, how ZeRO moves and keeps its shards), or
# that are compared with the recipe. All other keys are part of a run's identity.
DS_MAY_CHANGE = frozenset(
    {
        *BATCH_KEYS,
        "train_batch_size",
        "steps_per_print",
        "wall_clock_breakdown",
        "dump_state",
        "flops_profiler",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "activation_checkpointing",
        "aio",
        "checkpoint",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "contiguous_gradients",
        "reduce_scatter",
        "round_robin_gradients",
        "allgather_partitions",
        "allgather_bucket_size",
        "reduce_bucket_size",
        "sub_group_size",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_gather_16bit_weights_on_model_save",
    }
)
OBJECTS = ("zero_optimization", "bf16", "fp16")
# Keys that decide a result. A key that is nearly one of these is a typing mistake.
KNOWN_KEYS = (*BATCH_KEYS, *OBJECTS, "train_batch_size", "optimizer", "scheduler")


def read_ds_config(path: str | Path, settings: dict, dtype: torch.dtype, world_size: int) -> dict:
    """The DeepSpeed configuration, checked against the recipe's settings.

    "auto" stands for a value that the recipe decides. Raises InputError, which names the file, the
    key, both values and how to mend it.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object with DeepSpeed's settings")
    _check_names(path, config)
    _check_zero(path, config)
    _check_batch(path, config, settings, world_size)
    _check_precision(path, config, dtype)
    _check_replaced(path, config, settings)
    return config


def _check_names(path: str | Path, config: dict) -> None:
    """DeepSpeed ignores a key that it does not know, and a misspelled one would have no effect."""
    for name in config:
        meant = difflib.get_close_matches(name, KNOWN_KEYS, n=1, cutoff=0.85)
        if meant and name not in KNOWN_KEYS:
            raise InputError(
                f"{path}: unknown key {name!r}, which DeepSpeed would pass over; did you mean "
                f"{meant[0]!r}?"
            )
    for name in OBJECTS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(
                f'{path}: {name}: expected an object such as {{"enabled": "auto"}}, got '
                f"{config[name]!r:.80}"
            )


def _check_zero(path: str | Path, config: dict) -> None:
    """DeepSpeed would report these only after all ranks have started, with a traceback."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = config.get("zero_optimization", {})
    try:
        DeepSpeedZeroConfig(**{name: value for name, value in zero.items() if value != "auto"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise InputError(f"{path}: {place}: {first['msg']}, got {first['input']!r:.80}") from None


def _check_batch(path: str | Path, config: dict, settings: dict, world_size: int) -> None:
    for key, name in BATCH_KEYS.items():
        if config.get(key, "auto") not in ("auto", settings[name]):
            raise InputError(
                f"{path}: {key} = {config[key]} contradicts {name} = {settings[name]} of the "
                f'recipe; write "auto" into the file, or --{name} {config[key]}'
            )
    samples_of_rank = (
        settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    )
    expected = samples_of_rank * world_size
    if config.get("train_batch_size", "auto") not in ("auto", expected):
        raise InputError(
            f"{path}: train_batch_size = {config['train_batch_size']} contradicts the recipe: "
            "per_device_train_batch_size x gradient_accumulation_steps x "
            f'{world_size} ranks = {expected}; write "auto" into the file'
        )


def _check_precision(path: str | Path, config: dict, dtype: torch.dtype) -> None:
    for section, wanted in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        enabled = config.get(section, {}).get("enabled", "auto")
        if enabled != "auto" and enabled != (dtype == wanted):
            shown = str(enabled).lower()
            raise InputError(
                f"{path}: {section}.enabled = {shown} contradicts dtype "
                f"{str(dtype).split('.')[-1]} of the recipe; write "
                '"auto" into the file, or set --dtype'
            )


def _check_replaced(path: str | Path, config: dict, settings: dict) -> None:
    """A section of the file takes the place of what the recipe says about it."""
    for key, names in REPLACED.items():
        for name in names:
            if key in config and name in settings:
                raise InputError(
                    f"{path}: {key} takes the place of {name}, which the recipe gives, too; remove "
                    "one of the two"
                )


def deciding_settings(ds_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of DeepSpeed's configuration that belongs to a run's identity.

    "auto" is left out, because the recipe decides it. zero_stage is None without DeepSpeed, whose
    checkpoints are of another kind.
    """
    if ds_config is None:
        return {"zero_stage": None, "ds_config": None}
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    return {"zero_stage": stage, "ds_config": _deciding(ds_config)}


def _deciding(section: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in section.items():
        if key in DS_MAY_CHANGE:
            continue
        if isinstance(value, Mapping):
            value = _deciding(value)
        if value not in ("auto", {}):
            kept[key] = value
    return kept
