"""What ZeRO needs beside the Trainer: sharded loading, token rows, another number of ranks, a check
that nothing was saved empty.

The only file that imports deepspeed, and only inside functions: `import ilrec` works without it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json

# DeepSpeed's batch arithmetic: the ds_config key and the setting that it must agree with.
BATCH_KEYS = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
# Keys that leave the result as it is but for rounding, or that are compared with the recipe: batch,
# logging, and how ZeRO moves and keeps its shards. All others are part of what a checkpoint is
# known by.
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
SECTIONS = ("zero_optimization", "bf16", "fp16")
KNOWN_KEYS = (
    *BATCH_KEYS,
    *SECTIONS,
    "train_batch_size",
    "optimizer",
    "scheduler",
)  # those of its keys that decide a result
logger = logging.getLogger(__name__)
UNIVERSAL = "_universal"
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# torch's message: "Unsupported global: GLOBAL posix.system was not an allowed global by default".
UNSAFE_NAME = re.compile(r"GLOBAL (\S+)")
# Its worker processes are forked, so that they open files as weights only, too.
CONVERT = (
    "import runpy; from ilrec.training.zero3 import allow_state_classes; allow_state_classes(); "
    "runpy.run_module('deepspeed.checkpoint.ds_to_universal', run_name='__main__', alter_sys=True)"
)


def read_ds_config(path: str | Path, settings: dict, dtype: torch.dtype, world_size: int) -> dict:
    """The DeepSpeed configuration, checked against the recipe's settings: `auto` wherever the
    recipe decides.

    Raises InputError naming file, key, both values and the mend, before any process group exists.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object with DeepSpeed's settings")
    _check_sections(path, config)
    for key, name in BATCH_KEYS.items():
        if config.get(key, "auto") not in ("auto", settings[name]):
            raise InputError(
                f"{path}: {key} = {config[key]} contradicts {name} = {settings[name]} of the recipe; "
                f'write "auto" into the file, or --{name} {config[key]}'
            )
    expected = (
        settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"]
        * world_size
    )
    if config.get("train_batch_size", "auto") not in ("auto", expected):
        raise InputError(
            f"{path}: train_batch_size = {config['train_batch_size']} contradicts the recipe: "
            f"per_device_train_batch_size x gradient_accumulation_steps x {world_size} ranks = {expected}; "
            'write "auto" into the file'
        )
    for section, wanted in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        enabled = config.get(section, {}).get("enabled", "auto")
        if enabled != "auto" and enabled != (dtype == wanted):
            raise InputError(
                f"{path}: {section}.enabled = {str(enabled).lower()} contradicts dtype {str(dtype).split('.')[-1]}"
                f' of the recipe; write "auto" into the file, or set --dtype'
            )
    return config


def deciding_settings(ds_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of DeepSpeed's configuration decides the result. `auto` is left out: the recipe decides
    it.

    zero_stage None: no DeepSpeed, whose checkpoints are of another kind.
    """
    if ds_config is None:
        return {"zero_stage": None, "ds_config": None}
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    return {"zero_stage": stage, "ds_config": _deciding(ds_config)}


def _deciding(section: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: _deciding(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if key not in DS_MAY_CHANGE
    }
    return {key: value for key, value in kept.items() if value not in ("auto", {})}


def _check_sections(path: str | Path, config: dict) -> None:
    """What DeepSpeed would pass over (a name that it does not know) or end in a traceback for, once
    all ranks have started."""
    for name in config:
        meant = difflib.get_close_matches(name, KNOWN_KEYS, n=1, cutoff=0.85)
        if meant and name not in KNOWN_KEYS:
            raise InputError(
                f"{path}: unknown key {name!r}, which DeepSpeed would pass over; did you mean {meant[0]!r}?"
            )
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(
                f'{path}: {name}: expected an object such as {{"enabled": "auto"}}, got {config[name]!r:.80}'
            )
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = config.get("zero_optimization", {})
    try:
        DeepSpeedZeroConfig(**{name: value for name, value in zero.items() if value != "auto"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise InputError(f"{path}: {place}: {first['msg']}, got {first['input']!r:.80}") from None


def prepare_environment() -> None:
    """Let DeepSpeed start without a launcher, as one process: it asks the environment who it is."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


@contextlib.contextmanager
def unsharded(arguments: TrainingArguments) -> Iterator[None]:
    """Inside, models are loaded whole on this rank alone: sharded loading is collective and would
    wait for the others."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def prepare_sharded_loading() -> None:
    """Call once the Trainer's arguments exist (they start the process group) and before a model is
    loaded."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed

    warn_of_compile_locks()
    # On the CPU accelerate starts torch's process group only; DeepSpeed, unaware of it, would shard
    # for a world of one.
    deepspeed.init_distributed()

    def collect(
        layer: TrainableTokensLayer, weight: Tensor, rows: list[int], embed_dim: int
    ) -> Tensor:
        """peft (0.21) reads the rows to train through CUDA only. Here all ranks gather, so any
        device will do."""
        with deepspeed.zero.GatheredParameters([weight]):
            return weight[rows].clone()

    TrainableTokensLayer._collect_token_weights = collect  # type: ignore[method-assign, assignment]


def warn_of_compile_locks() -> None:
    """A process that was killed while it compiled an extension leaves its lock, and all later ones
    wait for it without a word."""
    from torch.utils.cpp_extension import get_default_build_root  # which imports setuptools

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.rglob("lock"):
        logger.warning(
            "%s: an extension is being compiled, which is waited for; if no process does it (one that was killed leaves "
            "this file), remove the file",
            lock,
        )


def register_token_rows(model: nn.Module) -> None:
    """Tell ZeRO-3 which weights a token-row layer reads without calling the module that owns them.

    Not as ZeRO-3 leaf modules: those reduce their gradients when the module's own backward ends,
    which loses the share of rows that the embedding and a tied head train together.
    """
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed

    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            for parameter in (layer.base_layer.weight, *layer.trainable_tokens_delta.values()):
                deepspeed.zero.register_external_parameter(layer, parameter)


@contextlib.contextmanager
def weights_only(checkpoint: str | None) -> Iterator[None]:
    """Inside, nothing that a checkpoint holds is run: torch.load opens data alone, whatever a
    library asks it for.

    DeepSpeed opens its files as full pickles, which may hold any code. Raises InputError where one
    holds what training did not write.
    """
    if checkpoint is None:
        yield
        return
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    if importlib.util.find_spec("deepspeed"):
        allow_state_classes()
    try:
        yield
    except pickle.UnpicklingError as error:
        names = ", ".join(UNSAFE_NAME.findall(str(error))) or "something else than weights"
        raise InputError(
            f"{checkpoint} holds a pickle of {names}, which no checkpoint of this trainer does and may run code when it "
            "is opened; it was not. Take a checkpoint that you trust, or train anew with --resume never"
        ) from None
    finally:
        os.environ.pop(FORCE_WEIGHTS_ONLY)
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def allow_state_classes() -> None:
    """The classes in DeepSpeed's optimizer states (0.19), all of them plain data. Call before
    states are written, too.

    Python 3.11.0 to 3.11.3 pickle an enum's member through getattr, which no file that is opened as
    data may name; here by value.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    ZeroStageEnum.__reduce_ex__ = lambda stage, protocol: (ZeroStageEnum, (stage.value,))  # type: ignore[method-assign]
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )


def load_for_other_ranks(checkpoint: str, arguments: TrainingArguments) -> None:
    """Let DeepSpeed resume from a checkpoint of another number of ranks: its universal form, made
    once, beside the shards.

    All ranks call it, after the arguments exist and before the Trainer does. Raises InputError
    where the conversion fails.
    """
    folder = next(Path(checkpoint).glob("global_step*[0-9]"), None)
    if folder is None:
        raise InputError(
            f"resume: {checkpoint} has no DeepSpeed state (global_step*); go on without --ds_config, as it was written"
        )
    universal = folder.with_name(folder.name + UNIVERSAL)
    if arguments.process_index == 0 and not (Path(checkpoint) / "latest_universal").exists():
        shutil.rmtree(universal, ignore_errors=True)
        # inject_missing_state: what ZeRO-1 and 2 leave out where the trainer is not DeepSpeed's
        # own.
        made = subprocess.run(
            [
                sys.executable,
                "-c",
                CONVERT,
                "--inject_missing_state",
                "--input_folder",
                str(folder),
                "--output_folder",
                str(universal),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, FORCE_WEIGHTS_ONLY: "1"},
        )
        if made.returncode:
            raise InputError(
                f"resume: {checkpoint} cannot be converted for another number of ranks; resume with as many as it was "
                f"written by, or free some space. DeepSpeed says: {made.stderr.strip().splitlines()[-1]}"
            )
        write_text(Path(checkpoint) / "latest_universal", universal.name)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    for config in (
        arguments.hf_deepspeed_config.config,
        arguments.deepspeed_plugin.deepspeed_config,
    ):
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}


def consolidated_adapter(checkpoint: Path) -> dict[str, Tensor]:
    """The trained tensors of a ZeRO-2 or ZeRO-3 checkpoint, in float32 on the CPU, under the names
    of peft's adapter files."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with weights_only(str(checkpoint)):
        try:
            state = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint), exclude_frozen_parameters=True
            )
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise InputError(
                f"{checkpoint}: its shards cannot be put together: {error}; take another checkpoint"
            ) from None
    return {
        re.sub(r"\.default(?=\.|$)", "", name): tensor.contiguous()
        for name, tensor in state.items()
    }


def check_saved(directory: str | Path) -> None:
    """Raises RuntimeError when a saved tensor is empty (the usual ZeRO-3 and LoRA accident) or
    nothing was saved."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise RuntimeError(f"{directory}: no weights were saved")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]
        if empty:
            raise RuntimeError(
                f"{file}: {len(empty)} tensors of size 0 were saved, first {empty[0]}"
            )
