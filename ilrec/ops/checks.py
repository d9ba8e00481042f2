"""Checks of what `cross_layer_loss` is given. Each raises a ValueError that names the argument and
says what was expected; the docstring of `cross_layer_loss` says what the arguments mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ilrec.ops.objective import IGNORE_INDEX, Objective, require


def check_states(
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    labels_N: Tensor,
    objective: Objective,
) -> None:
    """Shapes, dtypes and devices of what is always given."""
    require(hidden_NH.dim() == 2, f"hidden_NH: expected [N, H], got {tuple(hidden_NH.shape)}")
    num_rows, hidden_size = hidden_NH.shape
    dtype, device = hidden_NH.dtype, hidden_NH.device
    require(
        lm_head_VH.dim() == 2 and lm_head_VH.shape[1] == hidden_size and len(lm_head_VH) > 0,
        f"lm_head_VH: expected [V, {hidden_size}] with V > 0, got {tuple(lm_head_VH.shape)}; "
        "under ZeRO-3 it must be gathered first",
    )
    require(
        labels_N.shape == (num_rows,) and labels_N.dtype == torch.int64,
        f"labels_N: expected int64 [{num_rows}], got {labels_N.dtype} {tuple(labels_N.shape)}",
    )
    require(
        readout_KNH is not None or not objective.needs_readout,
        "readout_KNH: expected the readout layers' states, got None; only plain SFT "
        "(beta = distillation_weight = reward_weight = 0) and negatives_from last_layer do without",
    )
    require(
        hidden_NH.is_floating_point(),
        f"hidden_NH: expected a floating dtype, got {hidden_NH.dtype}",
    )
    if readout_KNH is not None:
        shape = tuple(readout_KNH.shape)
        require(
            readout_KNH.dim() == 3 and shape[1:] == hidden_NH.shape and shape[0] > 0,
            f"readout_KNH: expected [K, {num_rows}, {hidden_size}] with K > 0, got {shape}",
        )
        _check_kind("readout_KNH", readout_KNH, dtype, device)
    _check_kind("lm_head_VH", lm_head_VH, dtype, device)
    _check_kind("labels_N", labels_N, None, device)


def _check_kind(name: str, tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> None:
    """dtype: hidden_NH's, which the tensor must have; None: any."""
    require(tensor.device == device, f"{name}: expected device {device}, got {tensor.device}")
    require(
        dtype is None or tensor.dtype == dtype,
        f"{name}: expected hidden_NH's dtype {dtype}, got {tensor.dtype}",
    )


def check_options(
    lm_head_VH: Tensor,
    candidates_V: Tensor | None,
    objective: Objective,
    num_tokens: float | Tensor | None,
    new_token_ids_R: Tensor | None,
    new_token_rows_RH: Tensor | None,
) -> None:
    """Shapes, dtypes and devices of what may be given."""
    device, vocab_size = lm_head_VH.device, len(lm_head_VH)
    require(
        (candidates_V is not None) == (objective.negative_tokens == "items"),
        "candidates_V: expected if and only if negative_tokens is items, which is "
        f"{objective.negative_tokens}",
    )
    if candidates_V is not None:
        fits = candidates_V.shape == (vocab_size,) and candidates_V.dtype == torch.bool
        require(
            fits and candidates_V.device == device,
            f"candidates_V: expected bool [{vocab_size}] on {device}, got "
            f"{_describe(candidates_V)}",
        )
    if isinstance(num_tokens, Tensor):
        require(
            num_tokens.dim() == 0,
            f"num_tokens: expected a 0-dim tensor, got {tuple(num_tokens.shape)}",
        )
    elif num_tokens is not None:
        require(
            math.isfinite(num_tokens) and num_tokens >= 0,
            f"num_tokens: expected a finite number >= 0, got {num_tokens!r}",
        )
    require(
        (new_token_ids_R is None) == (new_token_rows_RH is None),
        "new_token_ids_R and new_token_rows_RH: expected both or neither",
    )
    if new_token_ids_R is not None and new_token_rows_RH is not None:
        _check_new_tokens(new_token_ids_R, new_token_rows_RH, lm_head_VH)


def _check_new_tokens(
    new_token_ids_R: Tensor, new_token_rows_RH: Tensor, lm_head_VH: Tensor
) -> None:
    device, hidden_size = lm_head_VH.device, lm_head_VH.shape[1]
    fits = new_token_ids_R.dim() == 1 and new_token_ids_R.dtype == torch.int64
    require(
        fits and new_token_ids_R.device == device,
        f"new_token_ids_R: expected int64 [R] on {device}, got {_describe(new_token_ids_R)}",
    )
    shape = (len(new_token_ids_R), hidden_size)
    fits = new_token_rows_RH.shape == shape and new_token_rows_RH.is_floating_point()
    require(
        fits and new_token_rows_RH.device == device,
        f"new_token_rows_RH: expected floating {shape} on {device}, got "
        f"{_describe(new_token_rows_RH)}",
    )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def rewards_on_device(
    token_rewards: tuple[Tensor, Tensor, Tensor] | None, labels_N: Tensor
) -> tuple[Tensor, ...]:
    """(offsets_N1, token_ids_E, values_E) on the device of the labels, shapes and dtypes
    checked."""
    if token_rewards is None or len(token_rewards) != 3:
        raise ValueError(
            "token_rewards: expected (offsets_N1, token_ids_E, values_E), because reward_weight > "
            "0 or negative_tokens is continuations"
        )
    moved = [part.to(labels_N.device, non_blocking=True) for part in token_rewards]
    offsets_N1, token_ids_E, values_E = moved
    num_offsets = len(labels_N) + 1
    require(
        offsets_N1.shape == (num_offsets,) and offsets_N1.dtype == torch.int64,
        f"token_rewards: expected int64 offsets [{num_offsets}], one row per row of labels_N "
        f"(ignored ones included), got {offsets_N1.dtype} {tuple(offsets_N1.shape)}",
    )
    ids_fit = token_ids_E.dim() == 1 and token_ids_E.dtype == torch.int64
    values_fit = values_E.shape == token_ids_E.shape and values_E.is_floating_point()
    require(
        ids_fit and values_fit,
        "token_rewards: expected int64 token ids [E] and floating values [E], got "
        f"{token_ids_E.dtype} {tuple(token_ids_E.shape)} and {values_E.dtype} "
        f"{tuple(values_E.shape)}",
    )
    return offsets_N1, token_ids_E, values_E.detach()


def check_values(
    labels_N: Tensor,
    vocab_size: int,
    candidates_V: Tensor | None,
    rewards: tuple[Tensor, ...] | None,
    new_token_ids_R: Tensor | None,
) -> int:
    """All checks that must read the device. Returns the number of labels.

    Every check is a tensor of flags, True where something is wrong. Their sums are copied to the
    host together, so that the device is waited for once.
    """
    ids = f"ids in [0, {vocab_size})"
    kept_N = labels_N != IGNORE_INDEX
    wrong = [
        (kept_N & _outside(labels_N, vocab_size), f"labels_N: expected {ids} or {IGNORE_INDEX}")
    ]
    if candidates_V is not None:
        wrong.append((~candidates_V.any(), "candidates_V: expected at least one True"))
    if rewards is not None:
        wrong += _wrong_rewards(rewards, vocab_size)
    if new_token_ids_R is not None:
        outside_R = _outside(new_token_ids_R, vocab_size)
        repeated = new_token_ids_R.sort().values.diff() == 0
        wrong.append((outside_R, f"new_token_ids_R: expected {ids}"))
        wrong.append((repeated, "new_token_ids_R: expected each id once"))

    totals = [kept_N.sum()] + [flags.sum() for flags, _ in wrong]
    num_labels, *counts = torch.stack(totals).tolist()
    for count, (_, message) in zip(counts, wrong, strict=True):
        require(count == 0, f"{message}; {count} do not fit")
    return int(num_labels)


def _wrong_rewards(rewards: tuple[Tensor, ...], vocab_size: int) -> list[tuple[Tensor, str]]:
    offsets_N1, token_ids_E, values_E = rewards
    num_entries = len(token_ids_E)
    falls = (offsets_N1.diff() < 0).any()
    misplaced = (offsets_N1[0] != 0) | (offsets_N1[-1] != num_entries) | falls
    not_a_reward_E = ~(values_E.isfinite() & (values_E >= 0))
    return [
        (
            misplaced,
            f"token_rewards: expected offsets that rise from 0 to the number of entries "
            f"({num_entries})",
        ),
        (
            _outside(token_ids_E, vocab_size),
            f"token_rewards: expected token ids in [0, {vocab_size})",
        ),
        (not_a_reward_E, "token_rewards: expected finite values >= 0"),
    ]


def _outside(ids: Tensor, vocab_size: int) -> Tensor:
    return (ids < 0) | (ids >= vocab_size)
