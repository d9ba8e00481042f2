"""What adapter_config.json says: of the adapter as a whole, and of one module.

Every setting is either known here or refused by name: a merge that ignored a setting would write a
wrong model without a word. Names and rules are those of peft 0.21 (peft/tuners/lora).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.weights.tensor_files import StoredTensor

CONFIG = "adapter_config.json"
# These settings decide how the merge is done, or only tell how the training went.
KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
# These initialisations leave the base as it is. The others (pissa, olora, corda, loftq, ...) change
# the base before training, so that the adapter does not fit the base as it was published.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_config(directory: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises InputError if it is not a LoRA adapter's, or a setting changes the merge in a way that is
    not known here.
    """
    path = directory / CONFIG
    config = read_json(path)
    # peft has some twenty other methods (IA3, OFT, prompts), whose files are named like these.
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InputError(
            f"{path}: peft_type: expected LORA, got {kind!r}; only LoRA adapters are merged"
        )
    for name in sorted(set(config) - KNOWN):
        # peft writes every setting that it has. One that is null, false or empty is not used.
        if config[name]:
            raise InputError(
                f"{path}: {name} = {str(config[name])[:60]}: adapters with this setting are not "
                "merged here; merge with peft's merge_and_unload, or train without it"
            )
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in PLAIN_INITIALISATIONS:
        raise InputError(
            f"{path}: init_lora_weights = {initialisation}: such an adapter changes its base, too; "
            "save it with peft's path_initial_model_for_weight_conversion, which makes it a plain "
            "one"
        )
    return config


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank of the module's low-rank update."""
    return int(_by_pattern(config.get("rank_pattern"), module, config["r"]))


def scaling_of(config: Mapping[str, Any], module: str) -> float:
    """The factor of the module's update B A: alpha / r, or alpha / sqrt(r) with rank-stabilised
    scaling (arXiv 2312.03732)."""
    rank = rank_of(config, module)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank)
    return alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the value of the first pattern that matches the module's whole name, or its end
    after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def token_ids_of(config: Mapping[str, Any], module: str, rows: StoredTensor) -> tuple[int, ...]:
    """The number of the token that each of the module's trained token rows belongs to.

    Raises InputError if there are not as many numbers as rows.
    """
    # peft takes a list, for the embedding, or lists by the modules' names.
    listed = config.get("trainable_token_indices")
    if isinstance(listed, dict):
        listed = _of_module(listed, module)
    if not listed or len(listed) != rows.num_rows:
        raise InputError(
            f"{rows.path}: {rows.name} has {rows.num_rows} rows, trainable_token_indices in "
            f"{CONFIG} names {len(listed or ())} for {module}; the two files do not belong together"
        )
    return tuple(int(token) for token in listed)


def _of_module(listed: Mapping[str, Any], module: str) -> Any:
    """The numbers listed for the module's name or its end; for a head that is not listed, those of
    the first module, which is the embedding that the head is tied to."""
    for name, numbers in listed.items():
        if module == name or module.endswith(f".{name}"):
            return numbers
    return next(iter(listed.values()), None)
