"""What a peft LoRA adapter does to each tensor of its base, read from its two files alone.

Every setting of adapter_config.json is either known here or refused by name: a merge that ignored
one would be wrong in silence. Names and formulas are peft 0.21's (peft/tuners/lora,
peft/utils/save_and_load.py).

Shapes: O output, I input features, r rank, V vocabulary, H hidden size, R trained token rows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.weights.tensor_files import MERGEABLE, StoredTensor, read_tensors

PREFIX = "base_model.model."
CONFIG = "adapter_config.json"
# Settings that decide how the merge is done, or that only say how training went.
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
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "runtime_config",
}
# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, ...) train
# on a changed one.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
FACTORS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
# A tensor saved whole, under the names peft gives it; where one is there twice, the first of these
# is the trained one.
WHOLE = ("modules_to_save.{}", "{}", "token_adapter.base_layer.{}", "base_layer.{}")
FROZEN = "original_module."  # peft's copy of what modules_to_save replaces


@dataclass(frozen=True)
class LowRank:
    """delta = scaling B A [O, I]; of an embedding (A [r, V], B [H, r]) its transpose [V, H]."""

    a: StoredTensor
    b: StoredTensor
    scaling: float
    is_embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of delta."""
        return (
            (self.a.shape[1], self.b.shape[0])
            if self.is_embedding
            else (self.b.shape[0], self.a.shape[1])
        )


@dataclass(frozen=True)
class Change:
    """To one tensor, in this order: replaced whole, low-rank update, rows scaled to a magnitude [O]
    (DoRA), single rows replaced."""

    whole: StoredTensor | None = None
    low_rank: LowRank | None = None
    magnitude: StoredTensor | None = None
    token_ids: tuple[int, ...] = ()
    token_rows_RH: StoredTensor | None = None

    @property
    def computes(self) -> bool:
        """More than copying a whole tensor."""
        return self.low_rank is not None or self.token_rows_RH is not None


@dataclass(frozen=True)
class Adapter:
    """changes: by the name of the base's tensor. base: what adapter_config.json calls it."""

    directory: Path
    config: Mapping[str, Any]
    changes: Mapping[str, Change]
    tensors: Mapping[str, StoredTensor]

    @property
    def base(self) -> str:
        return self.config.get("base_model_name_or_path") or "(none recorded)"

    @property
    def ties_embeddings(self) -> bool:
        """A tied head follows all that is trained in the embedding; otherwise token rows only (peft
        ties those by itself)."""
        return bool(self.config.get("ensure_weight_tying"))


def read_adapter(directory: Path, weights: Path | None = None) -> Adapter:
    """weights: where its tensors are, if elsewhere. InputError for what is no LoRA adapter or is
    not wholly known here."""
    config = read_config(directory)
    tensors = read_tensors(weights or directory, "adapter_model")
    for tensor in tensors.values():
        if tensor.dtype not in MERGEABLE:
            raise InputError(
                f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}; expected one of {', '.join(MERGEABLE)}"
            )
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, part = _split(tensor, name)
        modules.setdefault(module, {})[part] = tensor
    changes: dict[str, Change] = {}
    for module, parts in modules.items():
        changes.update(_changes(directory, module, parts, config))
    return Adapter(directory, config, changes, tensors)


def read_config(directory: Path) -> dict[str, Any]:
    """Raises InputError where a setting changes the merge in a way that is not known here."""
    path = directory / CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InputError(
            f"{path}: peft_type: expected LORA, got {kind!r}; only LoRA adapters are merged"
        )
    for name in sorted(set(config) - KNOWN):
        if config[name]:
            raise InputError(
                f"{path}: {name} = {str(config[name])[:60]}: adapters with this setting are not merged here; merge with "
                "peft's merge_and_unload, or train without it"
            )
    if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        raise InputError(
            f"{path}: init_lora_weights = {config['init_lora_weights']}: such an adapter changes its base, too; save it "
            "with peft's path_initial_model_for_weight_conversion, which makes it a plain one"
        )
    return config


def _split(tensor: StoredTensor, name: str) -> tuple[str, str]:
    """(module, what of it): `...q_proj`, `lora_A.weight`."""
    rest = name.removeprefix(PREFIX)
    if rest != name:
        for part in (
            *FACTORS,
            TOKEN_ROWS,
            *(form.format(kind) for kind in ("weight", "bias") for form in (*WHOLE, FROZEN + "{}")),
        ):
            if rest.endswith(f".{part}") and not _has_longer(rest, part):
                return rest[: -len(part) - 1], part
    raise InputError(f"{tensor.path}: {name} is no tensor of a LoRA adapter that is known here")


def _has_longer(name: str, part: str) -> bool:
    """`x.base_layer.weight` also ends with `weight`."""
    longer = (form.format(part) for form in (*WHOLE, FROZEN + "{}") if form != "{}")
    return part in ("weight", "bias") and any(
        name.endswith(f".{candidate}") for candidate in longer
    )


def _changes(
    directory: Path, module: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, Change]:
    """{tensor of the base: change} for one module."""
    changes = {}
    low_rank = _low_rank(directory, module, parts, config)
    magnitude, rows = parts.get("lora_magnitude_vector"), parts.get(TOKEN_ROWS)
    if magnitude is not None and (low_rank is None or low_rank.is_embedding):
        raise InputError(
            f"{directory}: {module}: DoRA on an embedding is not merged here (its norms run over the vocabulary); merge "
            "with peft's merge_and_unload"
        )
    for kind in ("weight", "bias"):
        whole = next(
            (parts[form.format(kind)] for form in WHOLE if form.format(kind) in parts), None
        )
        change = Change(whole)
        if kind == "weight":
            ids = _token_ids(directory, module, rows, config)
            change = dataclasses.replace(
                change, low_rank=low_rank, magnitude=magnitude, token_ids=ids, token_rows_RH=rows
            )
        if change != Change():
            changes[f"{module}.{kind}"] = change
    return changes


def _low_rank(
    directory: Path, module: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> LowRank | None:
    for a_name, b_name, is_embedding in (
        ("lora_A.weight", "lora_B.weight", False),
        ("lora_embedding_A", "lora_embedding_B", True),
    ):
        a, b = parts.get(a_name), parts.get(b_name)
        if a is None and b is None:
            continue
        if a is None or b is None:
            raise InputError(
                f"{directory}: {module} has {a_name if b is None else b_name} alone; the adapter is incomplete, copy or "
                "save it again"
            )
        rank = int(_pattern(config.get("rank_pattern"), module, config["r"]))
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise InputError(
                f"{a.path}: {module}: expected rank {rank} as in {CONFIG}, got {a_name} {list(a.shape)} and {b_name} "
                f"{list(b.shape)}; the two files do not belong together"
            )
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scaling = (
            alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        )  # rank stabilised: arXiv 2312.03732
        return LowRank(a, b, scaling, is_embedding)
    return None


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that is the module's name or its end, after a dot."""
    return next(
        (
            value
            for pattern, value in (patterns or {}).items()
            if re.match(rf"(.*\.)?({pattern})$", module)
        ),
        default,
    )


def _token_ids(
    directory: Path, module: str, rows: StoredTensor | None, config: Mapping[str, Any]
) -> tuple[int, ...]:
    if rows is None:
        return ()
    listed = config.get("trainable_token_indices")
    if isinstance(listed, dict):
        # By the module's name or its end. A head that is tied to the embedding has the embedding's.
        own = next(
            (ids for name, ids in listed.items() if module == name or module.endswith(f".{name}")),
            None,
        )
        listed = own if own is not None else next(iter(listed.values()), None)
    if not listed or len(listed) != rows.num_rows:
        raise InputError(
            f"{rows.path}: {rows.name} has {rows.num_rows} rows, trainable_token_indices in {CONFIG} names "
            f"{len(listed or ())} for {module}; the two files do not belong together"
        )
    return tuple(int(token) for token in listed)
