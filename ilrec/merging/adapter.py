"""What a peft LoRA adapter does to each tensor of its base, read from its two files alone.

adapter_settings.py reads adapter_config.json, adapter_names.py the names in
adapter_model.safetensors. This file puts both together: {tensor of the base: TensorChange}.

Shapes: O output, I input features, r rank, V vocabulary, H hidden size, R trained token rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.merging.adapter_names import TOKEN_ROWS, WHOLE, split_name
from ilrec.merging.adapter_settings import (
    CONFIG,
    rank_of,
    read_config,
    scaling_of,
    token_ids_of,
)
from ilrec.weights.tensor_files import MERGEABLE, StoredTensor, read_tensors


@dataclass(frozen=True)
class LowRank:
    """The update scaling B A, [O, I], of A [r, I] and B [O, r].

    The update of an embedding is the transpose, [V, H], of A [r, V] and B [H, r].
    """

    a: StoredTensor
    b: StoredTensor
    scaling: float
    is_embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """The update's shape."""
        if self.is_embedding:
            return self.a.shape[1], self.b.shape[0]
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class TensorChange:
    """What an adapter does to one tensor of its base. The steps are taken in this order:

    whole: replaces the tensor.
    low_rank: is added, to the tensor or to what replaced it.
    magnitude: [O], the length that each row is scaled to (DoRA).
    token_ids, token_rows_RH: single rows that are replaced, and what replaces them.
    """

    whole: StoredTensor | None = None
    low_rank: LowRank | None = None
    magnitude: StoredTensor | None = None
    token_ids: tuple[int, ...] = ()
    token_rows_RH: StoredTensor | None = None

    @property
    def computes(self) -> bool:
        """Whether there is more to do than to copy a tensor."""
        return self.low_rank is not None or self.token_rows_RH is not None


UNCHANGED = TensorChange()


@dataclass(frozen=True)
class Adapter:
    """config: the content of adapter_config.json. changes: by the name of the base's tensor.
    tensors: the adapter's own, by their names."""

    directory: Path
    config: Mapping[str, Any]
    changes: Mapping[str, TensorChange]
    tensors: Mapping[str, StoredTensor]

    @property
    def base(self) -> str:
        """What adapter_config.json calls the base."""
        return self.config.get("base_model_name_or_path") or "(none recorded)"

    @property
    def ties_embeddings(self) -> bool:
        """Whether a tied head follows everything that is trained in the embedding. Otherwise it
        follows the token rows only, which peft ties by itself."""
        return bool(self.config.get("ensure_weight_tying"))


def read_adapter(directory: Path, weights: Path | None = None) -> Adapter:
    """The adapter in `directory`. weights: the directory of its tensors, if that is another one.

    Raises InputError if it is not a LoRA adapter, or has a setting or a tensor that is not known
    here.
    """
    config = read_config(directory)
    tensors = read_tensors(weights or directory, "adapter_model")
    # An adapter is trained in floating point; integers come from a program that quantised it.
    for tensor in tensors.values():
        if tensor.dtype not in MERGEABLE:
            raise InputError(
                f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}; expected one of "
                f"{', '.join(MERGEABLE)}"
            )

    # One module has several tensors, at least A and B, which only together say what is done to it.
    modules: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors.values():
        module, part = split_name(tensor)
        modules.setdefault(module, {})[part] = tensor

    changes: dict[str, TensorChange] = {}
    for module, parts in modules.items():
        changes[f"{module}.weight"] = _weight_change(directory, module, parts, config)
        changes[f"{module}.bias"] = TensorChange(whole=_whole(parts, "bias"))
    changes = {name: change for name, change in changes.items() if change != UNCHANGED}
    return Adapter(directory, config, changes, tensors)


def _weight_change(
    directory: Path, module: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> TensorChange:
    """The change of a module's weight. parts: {part of the name: tensor} of this module."""
    # A module may have several changes: an embedding that was saved because it was resized can have
    # trained token rows besides.
    change = TensorChange(
        whole=_whole(parts, "weight"),
        low_rank=_low_rank(directory, module, parts, config),
        magnitude=parts.get("lora_magnitude_vector"),
    )
    if change.magnitude is not None and (change.low_rank is None or change.low_rank.is_embedding):
        raise InputError(
            f"{directory}: {module}: DoRA on an embedding is not merged here (its norms run over "
            "the vocabulary); merge with peft's merge_and_unload"
        )
    token_rows_RH = parts.get(TOKEN_ROWS)
    if token_rows_RH is None:
        return change
    token_ids = token_ids_of(config, module, token_rows_RH)
    return dataclasses.replace(change, token_ids=token_ids, token_rows_RH=token_rows_RH)


def _whole(parts: Mapping[str, StoredTensor], kind: str) -> StoredTensor | None:
    """The tensor that replaces the module's weight or bias, if there is one."""
    for form in WHOLE:
        name = form.format(kind)
        if name in parts:
            return parts[name]
    return None


def _low_rank(
    directory: Path, module: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> LowRank | None:
    """The module's low-rank update, if it has one. Raises InputError if A or B is missing, or their
    rank is not that of adapter_config.json."""
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    a_name, b_name = "lora_A.weight", "lora_B.weight"
    if is_embedding:
        a_name, b_name = "lora_embedding_A", "lora_embedding_B"
    a, b = parts.get(a_name), parts.get(b_name)
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise InputError(
            f"{directory}: {module} has {a_name if b is None else b_name} alone; the adapter is "
            "incomplete, copy or save it again"
        )
    # A wrong rank means a wrong scaling: adapter_config.json is then another adapter's.
    rank = rank_of(config, module)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise InputError(
            f"{a.path}: {module}: expected rank {rank} as in {CONFIG}, got {a_name} "
            f"{list(a.shape)} and {b_name} {list(b.shape)}; the two files do not belong together"
        )
    return LowRank(a, b, scaling_of(config, module), is_embedding)
