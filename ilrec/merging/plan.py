"""What is to be written, decided from headers alone: base and adapter fitted together, the
vocabulary's size, tied or not.

Shapes: V vocabulary of the base, W of the merged model, H hidden size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.merging.adapter import Adapter, Change
from ilrec.merging.rows import RowMerger, blocks
from ilrec.weights.tensor_files import (
    EMBEDDING,
    HEAD,
    MERGEABLE,
    NewTensor,
    StoredTensor,
    holds_another_head,
)

LAYER = re.compile(r"((?:.*?\.)?layers\.\d+)\.(.*)")


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the merged model: `base`, changed. num_rows and dtype are those it is written
    with."""

    name: str
    base: StoredTensor
    change: Change
    dtype: str
    num_rows: int

    @property
    def new(self) -> NewTensor:
        return NewTensor(
            self.name, self.dtype, (self.num_rows, *self.base.shape[1:]) if self.base.shape else ()
        )


@dataclass(frozen=True)
class Plan:
    """tensors in the base's order. vocab_size: rows of the embedding, None where the base has none
    of its usual name."""

    tensors: tuple[MergedTensor, ...]
    is_tied: bool
    vocab_size: int | None


def make_plan(
    base: Mapping[str, StoredTensor], config: Mapping[str, Any], adapter: Adapter, dtype: str | None
) -> Plan:
    """config: the base's config.json. dtype: safetensors' name of what to write; None: what the
    base has.

    Raises InputError where the adapter does not fit, naming both.
    """
    check_whole(base, text_config(config))
    changes = dict(adapter.changes)
    embedding = next((name for name in base if name.endswith(EMBEDDING)), None)
    was_tied = HEAD not in base or (
        bool(text_config(config).get("tie_word_embeddings")) and not holds_another_head(base)
    )
    sources = dict(base)
    if was_tied and embedding is not None:
        sources[HEAD] = base[embedding]
        if HEAD not in changes:
            changes[HEAD] = _tied_change(changes.get(embedding, Change()), adapter)
    _check_targets(base, adapter)
    for name in changes:
        if name not in sources:
            raise InputError(
                f"{adapter.directory}: changes {name}, which {_directory(base)} does not have: the adapter was made for "
                f"another base ({adapter.base}); name the right one with --base"
            )
    num_rows = _vocabulary(sources, changes, embedding, adapter)
    tensors = {
        name: _merged(
            name,
            tensor,
            changes.get(name, Change()),
            dtype,
            num_rows.get(name, tensor.num_rows),
            adapter,
        )
        for name, tensor in sources.items()
    }
    is_tied = was_tied and (embedding is None or _equal(tensors[embedding], tensors[HEAD]))
    if is_tied:
        tensors.pop(HEAD, None)
    return Plan(tuple(tensors.values()), is_tied, num_rows.get(embedding) if embedding else None)


def _check_targets(base: Mapping[str, StoredTensor], adapter: Adapter) -> None:
    """Raises InputError where a layer that target_modules names has no low-rank update: a part of
    the adapter is in no file.

    Not where the adapter leaves layers out by settings that only peft reads, nor for experts, which
    it counts as one.
    """
    if any(
        adapter.config.get(setting)
        for setting in (
            "layers_to_transform",
            "layers_pattern",
            "exclude_modules",
            "modules_to_save",
        )
    ):
        return
    targets = adapter.config.get("target_modules") or ()
    missing = sorted(
        name
        for name, tensor in base.items()
        if len(tensor.shape) == 2
        and ".experts." not in name
        and name.endswith(".weight")
        and _is_target(name.removesuffix(".weight"), targets)
        and adapter.changes.get(name, Change()).low_rank is None
    )
    if missing:
        raise InputError(
            f"{adapter.directory}: incomplete: target_modules in adapter_config.json names {len(missing)} layers of which "
            f"no update is there, first: {missing[0]}; copy or save the adapter again"
        )


def _is_target(module: str, targets: str | Sequence[str]) -> bool:
    """peft's rule: a regular expression of the whole name, or the name or its end after a dot."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a multi-modal model keeps its language model's settings."""
    return config.get("text_config", config)


def check_whole(base: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Raises InputError where a layer that config.json counts, or the head of an untied model, is
    in no file."""
    layers = {
        int(match.group(1))
        for name in base
        if (match := re.search(r"(?:^|\.)layers\.(\d+)\.", name))
    }
    missing = sorted(set(range(config.get("num_hidden_layers", 0))) - layers) if layers else []
    if missing or (config.get("tie_word_embeddings") is False and HEAD not in base):
        lacks = f"layer {missing[0]} of {config['num_hidden_layers']}" if missing else HEAD
        raise InputError(
            f"{_directory(base)}: incomplete: config.json promises {lacks}, no file has it; copy the model again"
        )
    if not config.get("num_kv_shared_layers"):  # Gemma 3n: later layers rightly have less
        _check_layers(base)


def _check_layers(base: Mapping[str, StoredTensor]) -> None:
    """Raises InputError where a layer has some of another's tensors and nothing of its own: the
    rest of it is in no file."""
    parts: dict[str, set[str]] = {}
    for name in base:
        if match := LAYER.match(name):
            parts.setdefault(match.group(1), set()).add(match.group(2))
    for layer, own in parts.items():
        for fuller in parts.values():
            if own < fuller:
                raise InputError(
                    f"{_directory(base)}: incomplete: {layer}.{min(fuller - own)} is in no file, though another layer has "
                    "it; copy the model again"
                )


def _directory(base: Mapping[str, StoredTensor]) -> Path:
    return next(iter(base.values())).path.parent


def _tied_change(change: Change, adapter: Adapter) -> Change:
    """What a tied head becomes of which the adapter says nothing itself.

    peft trains the rows of tokens in both; anything else in the embedding alone, unless it was told
    to keep them tied. A frozen copy of the embedding (saved because it was resized) is the head's
    as well.
    """
    if adapter.ties_embeddings:
        return change
    is_frozen = change.whole is not None and ".base_layer." in change.whole.name
    return Change(
        whole=change.whole if is_frozen or change.token_ids else None,
        token_ids=change.token_ids,
        token_rows_RH=change.token_rows_RH,
    )


def _vocabulary(
    sources: Mapping[str, StoredTensor],
    changes: Mapping[str, Change],
    embedding: str | None,
    adapter: Adapter,
) -> dict[str, int]:
    """Rows of embedding and head: the base's, or more where the adapter brings tokens. InputError
    where a new row has no values."""
    names = [name for name in (embedding, HEAD) if name is not None and name in sources]
    size = 0
    for name in names:
        change = changes.get(name, Change())
        size = max(size, _stored_rows(sources[name], change), max(change.token_ids, default=-1) + 1)
    for name in names:
        change = changes.get(name, Change())
        stored = _stored_rows(sources[name], change)
        missing = sorted(set(range(stored, size)) - set(change.token_ids))
        if missing:
            raise InputError(
                f"{adapter.directory}: the merged model has {size} tokens; of {name}, {len(missing)} rows (first: "
                f"{missing[0]}) are neither in the base {_directory(sources)} ({stored} rows) nor in the adapter: another "
                f"base than it was made for ({adapter.base}), or one that was resized and not saved"
            )
    return dict.fromkeys(names, size)


def _stored_rows(base: StoredTensor, change: Change) -> int:
    return change.whole.num_rows if change.whole else base.num_rows


def _merged(
    name: str,
    base: StoredTensor,
    change: Change,
    dtype: str | None,
    num_rows: int,
    adapter: Adapter,
) -> MergedTensor:
    if change != Change() and base.dtype not in MERGEABLE:
        raise InputError(
            f"{base.path}: {name} is stored as {base.dtype} (quantised?); merge into the model as it was before that, and "
            "quantise the merged one"
        )
    wrong = _misfit(base, change, num_rows)
    if wrong:
        raise InputError(
            f"{adapter.directory}: {name} is {list(base.shape)} in the base {base.path.parent} and the adapter's {wrong}: "
            f"it was made for another base ({adapter.base}); name the right one with --base"
        )
    return MergedTensor(
        name, base, change, dtype if dtype and base.dtype in MERGEABLE else base.dtype, num_rows
    )


def _misfit(base: StoredTensor, change: Change, num_rows: int) -> str:
    """The shape that does not fit, or ""."""
    rest = base.shape[1:]
    if change.whole and (
        change.whole.shape[1:] != rest or not base.num_rows <= change.whole.num_rows <= num_rows
    ):
        return f"own is {list(change.whole.shape)}"
    if change.low_rank and change.low_rank.shape != (_stored_rows(base, change), *rest):
        return f"update is {list(change.low_rank.shape)}"
    if change.magnitude and change.magnitude.shape != base.shape[:1]:
        return f"magnitude is {list(change.magnitude.shape)}"
    if change.token_rows_RH and change.token_rows_RH.shape[1:] != rest:
        return f"token rows are {list(change.token_rows_RH.shape)}"
    return ""


def _equal(one: MergedTensor, other: MergedTensor) -> bool:
    """In every value, as they would be written. Read only where the changes are not the same."""
    if dataclasses.replace(other, name=one.name) == one:
        return True
    mergers = RowMerger(one), RowMerger(other)
    return all(
        mergers[0].rows(start, stop).equal(mergers[1].rows(start, stop))
        for start, stop in blocks(one)
    )
