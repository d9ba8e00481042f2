"""What ZeRO needs beside the Trainer: a start without a launcher, sharded loading, trained token
rows, checkpoints of another number of ranks, and a check that nothing was saved empty.

deepspeed is imported here and in ds_config.py only, and only inside functions. So `import ilrec`
works without it.
"""

from __future__ import annotations

import contextlib
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

logger = logging.getLogger(__name__)
# Beside the shards, DeepSpeed's universal form of a checkpoint has their folder's name and this.
UNIVERSAL = "_universal"
# DeepSpeed reads the name of the universal form from this file.
LATEST_UNIVERSAL = "latest_universal"
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# torch's message: "Unsupported global: GLOBAL posix.system was not an allowed global by default".
UNSAFE_NAME = re.compile(r"GLOBAL (\S+)")
# The conversion runs in a process of its own. The worker processes that it forks inherit the
# allowed classes, so that they too open files as data only.
CONVERT = (
    "import runpy; from ilrec.training.zero3 import allow_state_classes; allow_state_classes(); "
    "runpy.run_module('deepspeed.checkpoint.ds_to_universal', run_name='__main__', alter_sys=True)"
)


def prepare_environment() -> None:
    """Let DeepSpeed start without a launcher, as one process.

    DeepSpeed reads from the environment which process this is.
    """
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def prepare_sharded_loading() -> None:
    """Call after the Trainer's arguments exist, which start the process group, and before a model
    is loaded."""
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed

    warn_of_compile_locks()
    # On the CPU, accelerate starts torch's process group only. DeepSpeed does not notice it and
    # would shard for a world of one.
    deepspeed.init_distributed()

    # peft (0.21) reads the rows to train through CUDA only. Here all ranks gather the weight, which
    # works on any device.
    def collect(
        layer: TrainableTokensLayer, weight: Tensor, rows: list[int], embed_dim: int
    ) -> Tensor:
        with deepspeed.zero.GatheredParameters([weight]):
            return weight[rows].clone()

    TrainableTokensLayer._collect_token_weights = collect  # type: ignore[method-assign, assignment]


def warn_of_compile_locks() -> None:
    """Warn of lock files that torch waits for without a word.

    A process that was killed while it compiled an extension leaves its lock, and all later ones
    wait.
    """
    # Imported here because it imports setuptools.
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.rglob("lock"):
        logger.warning(
            "%s: an extension is being compiled, and this run waits for it; if no process does it "
            "(one that was killed leaves this file), remove the file",
            lock,
        )


@contextlib.contextmanager
def unsharded(arguments: TrainingArguments) -> Iterator[None]:
    """Inside, this rank alone loads whole models. Sharded loading would wait for the others."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(arguments.hf_deepspeed_config)


def estimated_states(
    zero: Mapping[str, Any], num_trained: int, largest_layer: int, per_machine: int, machines: int
) -> tuple[int, int]:
    """DeepSpeed's estimate of (bytes of a machine's own memory, bytes on the device of one rank)
    for 16-bit weights that are all trained: weights, gradients, and AdamW's states in float32.

    zero: the section zero_optimization. largest_layer: parameters of the largest single module,
    which ZeRO-3 gathers whole.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    stage = zero.get("stage", 0)
    offload = is_offloaded(zero, "offload_optimizer")
    if stage == 3:
        host, device, _ = estimate_zero3_model_states_mem_needs(
            num_trained,
            largest_layer,
            per_machine,
            machines,
            cpu_offload=offload,
            cpu_offload_params=is_offloaded(zero, "offload_param"),
        )
        return host, device
    if stage == 0:  # Nothing is divided.
        per_machine = machines = 1
    host, device = estimate_zero2_model_states_mem_needs(
        num_trained, per_machine, machines, cpu_offload=offload
    )
    # ZeRO-1 has no estimator of its own. It does not divide the gradients, of 2 bytes each.
    return host, device + 2 * num_trained * (stage == 1)


def is_offloaded(zero: Mapping[str, Any], what: str) -> bool:
    """what: offload_optimizer or offload_param."""
    return (zero.get(what) or {}).get("device", "none") != "none"


def register_token_rows(model: nn.Module) -> None:
    """Tell ZeRO-3 which weights a token-row layer reads without calling the module that owns them.

    ZeRO-3 leaf modules are no way to do it. They reduce their gradients when the module's own
    backward ends, which loses the rows' gradients if the embedding and a tied head train the rows
    together.
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
    """Inside, torch.load opens data only, whatever a library asks it for. None: changes nothing.

    DeepSpeed opens its files as full pickles, and a pickle may run any code. Raises InputError if a
    file holds something that training did not write.
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
        names = ", ".join(UNSAFE_NAME.findall(str(error))) or "something other than weights"
        raise InputError(
            f"{checkpoint} holds a pickle of {names}, which no checkpoint of this trainer does and "
            "may run code when it is opened; it was not. Take a checkpoint that you trust, or "
            "train anew with --resume never"
        ) from None
    finally:
        os.environ.pop(FORCE_WEIGHTS_ONLY)
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def allow_state_classes() -> None:
    """Let torch open the classes in DeepSpeed's optimizer states (0.19), which are plain data.

    Call it before states are written, too. Python 3.11.0 to 3.11.3 pickle a member of an enum
    through getattr, and a file that is opened as data may not name getattr. Here it is pickled by
    value.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def by_value(stage: ZeroStageEnum, protocol: Any) -> tuple[type, tuple[int]]:
        return ZeroStageEnum, (stage.value,)

    ZeroStageEnum.__reduce_ex__ = by_value  # type: ignore[method-assign]
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )


def load_for_other_ranks(checkpoint: str, arguments: TrainingArguments) -> None:
    """Let DeepSpeed resume from a checkpoint that another number of ranks wrote.

    Its universal form is made once, beside the shards. All ranks call it, after the arguments exist
    and before the Trainer does. Raises InputError if the conversion fails.
    """
    shards = next(Path(checkpoint).glob("global_step*[0-9]"), None)
    if shards is None:
        raise InputError(
            f"resume: {checkpoint} has no DeepSpeed state (global_step*); go on without "
            "--ds_config, as it was written"
        )
    is_made = (Path(checkpoint) / LATEST_UNIVERSAL).exists()
    if arguments.process_index == 0 and not is_made:
        _convert(checkpoint, shards)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # The Trainer and accelerate keep a copy each.
    for config in (
        arguments.hf_deepspeed_config.config,
        arguments.deepspeed_plugin.deepspeed_config,
    ):
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}


def _convert(checkpoint: str, shards: Path) -> None:
    universal = shards.with_name(shards.name + UNIVERSAL)
    # An earlier conversion may have ended in its middle.
    shutil.rmtree(universal, ignore_errors=True)
    command = [sys.executable, "-c", CONVERT]
    # ZeRO-1 and 2 leave something out if the trainer is not DeepSpeed's own.
    command += ["--inject_missing_state"]
    command += ["--input_folder", str(shards), "--output_folder", str(universal)]
    made = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, FORCE_WEIGHTS_ONLY: "1"}
    )
    if made.returncode:
        raise InputError(
            f"resume: {checkpoint} cannot be converted for another number of ranks; resume with as "
            "many as it was written by, or free some space. DeepSpeed says: "
            f"{made.stderr.strip().splitlines()[-1]}"
        )
    write_text(Path(checkpoint) / LATEST_UNIVERSAL, universal.name)


def consolidated_adapter(checkpoint: Path) -> dict[str, Tensor]:
    """The trained tensors of a ZeRO-2 or ZeRO-3 checkpoint, put together from its shards.

    float32 on the CPU, under the names of peft's adapter files. Raises InputError if the shards do
    not fit together.
    """
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
    # A loaded peft model has the adapter's name, `default`, in its parameters' names; the files
    # have not.
    return {
        re.sub(r"\.default(?=\.|$)", "", name): tensor.contiguous()
        for name, tensor in state.items()
    }


def check_saved(directory: str | Path) -> None:
    """Raises RuntimeError if nothing was saved, or a saved tensor is empty.

    An empty tensor is the usual accident of LoRA under ZeRO-3: a shard is saved where the gathered
    weight should be.
    """
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
