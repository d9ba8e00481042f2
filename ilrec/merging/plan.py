"""Fits base and adapter together: decides, from headers alone, what is written.

Everything that can be wrong is found here, before a byte of a tensor is read: another base, new
tokens without values, shapes that do not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ilrec.errors import InputError
from ilrec.merging.adapter import UNCHANGED, Adapter, TensorChange
from ilrec.merging.completeness import (
    check_adapter_complete,
    check_base_complete,
    directory_of,
)
from ilrec.merging.rows import MergedTensor, RowMerger, blocks
from ilrec.weights.tensor_files import (
    EMBEDDING,
    HEAD,
    MERGEABLE,
    StoredTensor,
    holds_another_head,
)


@dataclass(frozen=True)
class MergePlan:
    """tensors: all that are written, in the base's order. is_tied: whether head and embedding are
    one tensor. vocab_size: the embedding's rows; None if the base has no embedding of the usual
    name."""

    tensors: tuple[MergedTensor, ...]
    is_tied: bool
    vocab_size: int | None


def plan_merge(
    base: Mapping[str, StoredTensor], config: Mapping[str, Any], adapter: Adapter, dtype: str | None
) -> MergePlan:
    """What merging `adapter` into `base` writes.

    config: the base's config.json. dtype: safetensors' name of the dtype to write; None keeps that
    of each tensor. Raises InputError, naming both directories, if the adapter does not fit.
    """
    text = text_config(config)
    check_base_complete(base, text)

    # A tied base has one tensor for two: its head is planned as a tensor of its own, which has the
    # embedding's values and its own change.
    embedding = next((name for name in base if name.endswith(EMBEDDING)), None)
    says_tied = bool(text.get("tie_word_embeddings"))
    was_tied = HEAD not in base or (says_tied and not holds_another_head(base))
    sources = dict(base)
    changes = dict(adapter.changes)
    if was_tied and embedding is not None:
        sources[HEAD] = base[embedding]
        if HEAD not in changes:
            changes[HEAD] = _tied_change(changes.get(embedding, UNCHANGED), adapter)

    # An adapter that changes what the base does not have, or leaves out what it should change, was
    # made for another base or is incomplete.
    check_adapter_complete(base, adapter)
    for name in changes:
        if name not in sources:
            raise InputError(
                f"{adapter.directory}: changes {name}, which {directory_of(base)} does not have: "
                f"the adapter was made for another base ({adapter.base}); name the right one with "
                "--base"
            )

    # Embedding and head grow together: a model has one number of tokens.
    num_rows = _grown_rows(sources, changes, embedding, adapter)
    tensors = {}
    for name, tensor in sources.items():
        change = changes.get(name, UNCHANGED)
        merged = MergedTensor(
            name,
            tensor,
            change,
            dtype=dtype if dtype and tensor.dtype in MERGEABLE else tensor.dtype,
            num_rows=num_rows.get(name, tensor.num_rows),
        )
        _check_fits(merged, adapter)
        tensors[name] = merged

    # The pair is written as one tensor again if both come out equal in every value.
    is_tied = was_tied and (embedding is None or _equal(tensors[embedding], tensors[HEAD]))
    if is_tied:
        tensors.pop(HEAD, None)
    vocab_size = num_rows.get(embedding) if embedding else None
    return MergePlan(tuple(tensors.values()), is_tied, vocab_size)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's settings in config.json; a multi-modal model has them in a section."""
    return config.get("text_config", config)


def _tied_change(of_embedding: TensorChange, adapter: Adapter) -> TensorChange:
    """The change for a tied head that the adapter does not mention.

    The head follows the embedding as in peft's forward: peft trains token rows for both, and
    anything else in the embedding alone, unless it was told to keep the two tied. An embedding that
    was saved because it was resized (`base_layer`) is not trained, and is the head's as well.
    """
    if adapter.ties_embeddings:
        return of_embedding
    whole = of_embedding.whole
    was_resized = whole is not None and ".base_layer." in whole.name
    return TensorChange(
        whole=whole if was_resized or of_embedding.token_ids else None,
        token_ids=of_embedding.token_ids,
        token_rows_RH=of_embedding.token_rows_RH,
    )


def _grown_rows(
    sources: Mapping[str, StoredTensor],
    changes: Mapping[str, TensorChange],
    embedding: str | None,
    adapter: Adapter,
) -> dict[str, int]:
    """The number of rows that embedding and head are written with: the base's, or more if the
    adapter brings tokens. Raises InputError if a new row has no values."""
    # The size is the largest that one of the two needs: for its rows in the files, or for its
    # trained tokens.
    names = [name for name in (embedding, HEAD) if name is not None and name in sources]
    stored_rows = {
        name: _stored_rows(sources[name], changes.get(name, UNCHANGED)) for name in names
    }
    size = 0
    for name in names:
        largest_token = max(changes.get(name, UNCHANGED).token_ids, default=-1)
        size = max(size, stored_rows[name], largest_token + 1)

    # Each row that the files lack has to be a trained token's: any other would have no values.
    for name in names:
        trained = set(changes.get(name, UNCHANGED).token_ids)
        missing = sorted(set(range(stored_rows[name], size)) - trained)
        if missing:
            raise InputError(
                f"{adapter.directory}: the merged model has {size} tokens; of {name}, "
                f"{len(missing)} rows (first: {missing[0]}) are neither in the base "
                f"{directory_of(sources)} ({stored_rows[name]} rows) nor in the adapter: this is "
                f"another base than it was made for ({adapter.base}), or one that was resized and "
                "not saved"
            )
    return dict.fromkeys(names, size)


def _stored_rows(base: StoredTensor, change: TensorChange) -> int:
    """The rows that the files have, before single token rows are set."""
    return change.whole.num_rows if change.whole else base.num_rows


def _check_fits(tensor: MergedTensor, adapter: Adapter) -> None:
    """Raises InputError if the base's tensor cannot be changed, or not by this change."""
    base = tensor.base
    if tensor.change != UNCHANGED and base.dtype not in MERGEABLE:
        raise InputError(
            f"{base.path}: {tensor.name} is stored as {base.dtype} (quantised?); merge into the "
            "model as it was before it was quantised, and quantise the merged one"
        )
    wrong = _misfit(tensor)
    if wrong:
        raise InputError(
            f"{adapter.directory}: {tensor.name} is {list(base.shape)} in the base "
            f"{base.path.parent} and the adapter's {wrong}: it was made for another base "
            f"({adapter.base}); name the right one with --base"
        )


def _misfit(tensor: MergedTensor) -> str:
    """The adapter's tensor whose shape does not fit, with its shape; "" if all of them fit."""
    base, change = tensor.base, tensor.change
    rest = base.shape[1:]
    whole = change.whole
    # The adapter's own tensor may have more rows than the base's: the vocabulary grew.
    if whole:
        fits = base.num_rows <= whole.num_rows <= tensor.num_rows
        if whole.shape[1:] != rest or not fits:
            return f"own is {list(whole.shape)}"
    if change.low_rank and change.low_rank.shape != (_stored_rows(base, change), *rest):
        return f"update is {list(change.low_rank.shape)}"
    if change.magnitude and change.magnitude.shape != base.shape[:1]:
        return f"magnitude is {list(change.magnitude.shape)}"
    if change.token_rows_RH and change.token_rows_RH.shape[1:] != rest:
        return f"token rows are {list(change.token_rows_RH.shape)}"
    return ""


def _equal(one: MergedTensor, other: MergedTensor) -> bool:
    """Whether both come out with the same values, as they are written."""
    # The same source and the same change: nothing has to be read.
    if dataclasses.replace(other, name=one.name) == one:
        return True
    first, second = RowMerger(one), RowMerger(other)
    for start, stop in blocks(one):
        if not first.rows(start, stop).equal(second.rows(start, stop)):
            return False
    return True
