"""Refuses a base or an adapter of which a part is in no file.

A directory that was copied by halves still has valid files. Merged, it would give a model with
tensors missing, or one in which some layers never got their update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.merging.adapter import UNCHANGED, Adapter
from ilrec.weights.tensor_files import HEAD, StoredTensor

# `model.layers.3.` and what follows: one decoder layer, and the tensor within it.
LAYER = re.compile(r"((?:.*?\.)?layers\.(\d+))\.(.*)")
# With one of these settings an adapter leaves out layers that target_modules names.
LEAVES_OUT = ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")


def check_base_complete(base: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Raises InputError if a layer, a part of a layer, or the head of an untied model is missing.

    config: the language model's part of config.json.
    """
    # What config.json promises: the number of layers, and a head where it is not tied.
    directory = directory_of(base)
    missing = _missing_layer(base, config)
    if not missing and config.get("tie_word_embeddings") is False and HEAD not in base:
        missing = HEAD
    if missing:
        raise InputError(
            f"{directory}: incomplete: config.json promises {missing}, no file has it; copy the "
            "model again"
        )
    # Gemma 3n shares keys and values between layers: later layers rightly have fewer tensors.
    if not config.get("num_kv_shared_layers"):
        _check_layers_alike(base, directory)


def directory_of(base: Mapping[str, StoredTensor]) -> Path:
    return next(iter(base.values())).path.parent


def _missing_layer(base: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> str:
    """The first layer that config.json counts and no file has, or ""."""
    found = {int(match.group(2)) for match in map(LAYER.match, base) if match}
    if not found:  # a model whose layers have another name
        return ""
    num_layers = config.get("num_hidden_layers", 0)
    missing = sorted(set(range(num_layers)) - found)
    return f"layer {missing[0]} of {num_layers}" if missing else ""


def _check_layers_alike(base: Mapping[str, StoredTensor], directory: Path) -> None:
    """Raises InputError if a layer has some of another layer's tensors and no others: the rest of
    it is missing."""
    # Layers of one model may be of different kinds, such as full and linear attention. Each kind
    # has tensors that the other lacks; half of a layer has none that a whole one lacks.
    parts: dict[str, set[str]] = {}
    for name in base:
        match = LAYER.match(name)
        if match:
            layer, _, part = match.groups()
            parts.setdefault(layer, set()).add(part)
    for layer, own in parts.items():
        for fuller in parts.values():
            if own < fuller:
                raise InputError(
                    f"{directory}: incomplete: {layer}.{min(fuller - own)} is in no file, though "
                    "another layer has it; copy the model again"
                )


def check_adapter_complete(base: Mapping[str, StoredTensor], adapter: Adapter) -> None:
    """Raises InputError if a layer that target_modules names has no low-rank update.

    Says nothing about an adapter that leaves layers out by settings that only peft can apply.
    """
    if any(adapter.config.get(setting) for setting in LEAVES_OUT):
        return
    targets = adapter.config.get("target_modules") or ()
    missing = []
    for name, tensor in base.items():
        # peft adapts the experts of a layer together, under a name that the files do not have.
        is_matrix = len(tensor.shape) == 2 and name.endswith(".weight") and ".experts." not in name
        if is_matrix and _is_target(name.removesuffix(".weight"), targets):
            if adapter.changes.get(name, UNCHANGED).low_rank is None:
                missing.append(name)
    if missing:
        raise InputError(
            f"{adapter.directory}: incomplete: target_modules in adapter_config.json names layers "
            f"that have no update in the adapter ({len(missing)}, first: {min(missing)}); copy or "
            "save the adapter again"
        )


def _is_target(module: str, targets: str | Sequence[str]) -> bool:
    """peft's rule: a text is a regular expression of the whole name; a list holds names, or ends of
    names after a dot."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)
