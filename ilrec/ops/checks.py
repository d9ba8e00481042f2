"""Checks of what `cross_layer_loss` is given: one ValueError that says what was expected. See its
docstring for the meaning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ilrec.ops import Objective

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_states(
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    labels_N: Tensor,
    objective: Objective,
) -> None:
    require(hidden_NH.dim() == 2, f"hidden_NH: expected [N, H], got {tuple(hidden_NH.shape)}")
    num_rows, hidden_size = hidden_NH.shape
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
        "(beta = distillation_weight = reward_weight = 0) does without",
    )
    require(
        hidden_NH.is_floating_point(),
        f"hidden_NH: expected a floating dtype, got {hidden_NH.dtype}",
    )
    if readout_KNH is not None:
        require(
            readout_KNH.dim() == 3
            and readout_KNH.shape[1:] == hidden_NH.shape
            and len(readout_KNH) > 0,
            f"readout_KNH: expected [K, {num_rows}, {hidden_size}] with K > 0, got {tuple(readout_KNH.shape)}",
        )
    for name, tensor in (
        ("readout_KNH", readout_KNH),
        ("lm_head_VH", lm_head_VH),
        ("labels_N", labels_N),
    ):
        if tensor is None:
            continue
        require(
            tensor.device == hidden_NH.device,
            f"{name}: expected device {hidden_NH.device}, got {tensor.device}",
        )
        require(
            tensor is labels_N or tensor.dtype == hidden_NH.dtype,
            f"{name}: expected hidden_NH's dtype {hidden_NH.dtype}, got {tensor.dtype}",
        )


def check_options(
    lm_head_VH: Tensor,
    candidates_V: Tensor | None,
    objective: Objective,
    num_tokens: float | Tensor | None,
    new_token_ids_R: Tensor | None,
    new_token_rows_RH: Tensor | None,
) -> None:
    device, (vocab_size, hidden_size) = lm_head_VH.device, lm_head_VH.shape
    require(
        (candidates_V is not None) == (objective.negative_tokens == "items"),
        f"candidates_V: expected if and only if negative_tokens is items, which is {objective.negative_tokens}",
    )
    if candidates_V is not None:
        require(
            candidates_V.shape == (vocab_size,)
            and candidates_V.dtype == torch.bool
            and candidates_V.device == device,
            f"candidates_V: expected bool [{vocab_size}] on {device}, got {candidates_V.dtype} "
            f"{tuple(candidates_V.shape)} on {candidates_V.device}",
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
        require(
            new_token_ids_R.dim() == 1
            and new_token_ids_R.dtype == torch.int64
            and new_token_ids_R.device == device,
            f"new_token_ids_R: expected int64 [R] on {device}, got {new_token_ids_R.dtype} "
            f"{tuple(new_token_ids_R.shape)} on {new_token_ids_R.device}",
        )
        expected = (len(new_token_ids_R), hidden_size)
        require(
            new_token_rows_RH.shape == expected
            and new_token_rows_RH.is_floating_point()
            and new_token_rows_RH.device == device,
            f"new_token_rows_RH: expected floating {expected} on {device}, got {new_token_rows_RH.dtype} "
            f"{tuple(new_token_rows_RH.shape)} on {new_token_rows_RH.device}",
        )


def rewards_on_device(
    token_rewards: tuple[Tensor, Tensor, Tensor] | None, labels_N: Tensor
) -> tuple[Tensor, ...]:
    if token_rewards is None or len(token_rewards) != 3:
        raise ValueError(
            "token_rewards: expected (offsets_N1, token_ids_E, values_E), because reward_weight > 0 or "
            "negative_tokens is continuations"
        )
    offsets_N1, token_ids_E, values_E = (
        part.to(labels_N.device, non_blocking=True) for part in token_rewards
    )
    require(
        offsets_N1.shape == (len(labels_N) + 1,) and offsets_N1.dtype == torch.int64,
        f"token_rewards: expected int64 offsets [{len(labels_N) + 1}], one row per row of labels_N (ignored ones "
        f"included), got {offsets_N1.dtype} {tuple(offsets_N1.shape)}",
    )
    require(
        token_ids_E.dim() == 1
        and token_ids_E.dtype == torch.int64
        and values_E.shape == token_ids_E.shape
        and values_E.is_floating_point(),
        f"token_rewards: expected int64 token ids [E] and floating values [E], got {token_ids_E.dtype} "
        f"{tuple(token_ids_E.shape)} and {values_E.dtype} {tuple(values_E.shape)}",
    )
    return offsets_N1, token_ids_E, values_E.detach()


def check_values(
    labels_N: Tensor,
    vocab_size: int,
    candidates_V: Tensor | None,
    rewards: tuple[Tensor, ...] | None,
    new_token_ids_R: Tensor | None,
) -> int:
    """All checks that must read the device, in one synchronisation. Returns the number of
    labels."""

    def outside(ids: Tensor) -> Tensor:
        return (ids < 0) | (ids >= vocab_size)

    kept_N = labels_N != IGNORE_INDEX
    bad = [
        (
            kept_N & outside(labels_N),
            f"labels_N: expected ids in [0, {vocab_size}) or {IGNORE_INDEX}",
        )
    ]
    if candidates_V is not None:
        bad.append((~candidates_V.any(), "candidates_V: expected at least one True"))
    if rewards is not None:
        offsets_N1, token_ids_E, values_E = rewards
        bad += [
            (
                (offsets_N1[0] != 0)
                | (offsets_N1[-1] != len(token_ids_E))
                | (offsets_N1.diff() < 0).any(),
                f"token_rewards: expected offsets that rise from 0 to the number of entries ({len(token_ids_E)})",
            ),
            (outside(token_ids_E), f"token_rewards: expected token ids in [0, {vocab_size})"),
            (
                ~(values_E.isfinite() & (values_E >= 0)),
                "token_rewards: expected finite values >= 0",
            ),
        ]
    if new_token_ids_R is not None:
        bad += [
            (outside(new_token_ids_R), f"new_token_ids_R: expected ids in [0, {vocab_size})"),
            (new_token_ids_R.sort().values.diff() == 0, "new_token_ids_R: expected each id once"),
        ]
    num_labels, *counts = torch.stack([kept_N.sum()] + [flags.sum() for flags, _ in bad]).tolist()
    for count, (_, message) in zip(counts, bad, strict=True):
        require(count == 0, f"{message}; {count} do not fit")
    return int(num_labels)
