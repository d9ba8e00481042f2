"""`cross_layer_loss`: hidden states in, the whole ILRec loss out.

It checks its input, drops the positions without a label, hands the rest to a backend and divides
the sum by the number of tokens.

Shape letters: N supervised tokens, K readout layers, H hidden, V vocabulary, R new tokens, E reward
entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilrec.ops import backends, checks, fused, reference, row_slab
from ilrec.ops.objective import BACKENDS, IGNORE_INDEX, STATS, Objective, require
from ilrec.ops.random_negatives import Draw
from ilrec.ops.row_inputs import RowInputs


def cross_layer_loss(
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    labels_N: Tensor,
    *,
    objective: Objective,
    candidates_V: Tensor | None = None,
    token_rewards: tuple[Tensor, Tensor, Tensor] | None = None,
    num_tokens: float | Tensor | None = None,
    new_token_ids_R: Tensor | None = None,
    new_token_rows_RH: Tensor | None = None,
    backend: str = "auto",
    slab_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The ILRec objective (arXiv 2602.17410; docs/method.md, steps 1 to 4) over the positions with
    a label.

    loss = (preference_sum + distillation_weight * distillation_sum + reward_weight * reward_sum)
           / num_tokens

    Gradients: hidden_NH, lm_head_VH and new_token_rows_RH learn from preference and reward, through
    the last layer's logits only; readout_KNH learns from distillation only. Distillation gives
    nothing to the head, because moving the head to suit the readout layers would move the last
    layer's own distribution, which is the teacher. Selection and weights of the negatives, the
    teacher and the reward's soft target carry no gradient.

    Args:
        hidden_NH: float, last layer's states after the final norm. Rows with label IGNORE_INDEX are
            dropped here.
        readout_KNH: as hidden_NH, one per readout layer, each after the final norm. None is allowed
            where objective.needs_readout is False; then it is not read.
        lm_head_VH: the same dtype. If it is frozen (requires_grad False), nothing of size V x H is
            allocated, except by the reference backend.
        labels_N: int64 in [0, V), or IGNORE_INDEX.
        candidates_V: bool, the item tokens; given if and only if objective.negative_tokens is
            `items`. S is then a subset of them, and distillation compares P and Pe renormalised
            over them.
        token_rewards: CSR (offsets_N1 int64, token_ids_E int64, values_E float >= 0), one row per
            row of labels_N, the ignored ones included; on any device. The entries of a row are the
            tokens that continue an item, and their rewards, which may be 0. Entries of one row that
            name the same token add up. A row without a positive reward on the tokens that
            objective.reward_tokens names contributes 0 to that term. With
            objective.negative_tokens `continuations`, S is a subset of the row's entries. Needed if
            reward_weight > 0 or S is limited in this way, otherwise not read.
        num_tokens: what the sums are divided by: the supervised tokens of the GLOBAL batch. None:
            those of this call. The value of a 0-dim tensor is never copied to the host.
        new_token_ids_R, new_token_rows_RH: int64 unique ids, and the rows that REPLACE the head's
            rows of these ids (trainable token rows beside a frozen head; any float dtype).
        backend: one of BACKENDS. auto: row_slab, or vocab_stream where only few rows fit into
            slab_bytes (ilrec/ops/backends.py).
        slab_bytes: memory for logits. None: row_slab.SLAB_BYTES of the device type.

    Returns:
        loss: 0-dim, float32 (float64 for float64 input). Without any label it is exactly 0, with
            gradients of zeros.
        stats_5: float32, detached SUMS over this call's supervised tokens, named by STATS. A term
            with weight 0 is not computed and reads 0; where no term needs S, S counts as empty.

    Raises:
        ValueError: a shape, dtype, device, value or backend that does not fit; the text says what
            was expected.
    """
    # 1. Check everything, so that a mistake is one message and not an error deep in a kernel. The
    #    checks that read the device do so in one synchronisation.
    _check_choice(backend, slab_bytes)
    checks.check_states(hidden_NH, readout_KNH, lm_head_VH, labels_N, objective)
    checks.check_options(
        lm_head_VH, candidates_V, objective, num_tokens, new_token_ids_R, new_token_rows_RH
    )
    rewards = None
    if objective.needs_continuations:
        rewards = checks.rewards_on_device(token_rewards, labels_N)
    vocab_size = len(lm_head_VH)
    num_labels = checks.check_values(labels_N, vocab_size, candidates_V, rewards, new_token_ids_R)
    if num_labels == 0:
        return _connected_zero(hidden_NH, readout_KNH, lm_head_VH, new_token_rows_RH)

    # 2. Keep the rows with a label, and the states that some term looks at.
    kept_N = labels_N != IGNORE_INDEX
    entries = None if rewards is None else _reward_entries(rewards, kept_N, vocab_size)
    readout_KNH = _proposing_states(hidden_NH, readout_KNH, objective)
    if num_labels < len(labels_N):
        rows_N = kept_N.nonzero()[:, 0]
        hidden_NH, labels_N = hidden_NH.index_select(0, rows_N), labels_N.index_select(0, rows_N)
        if readout_KNH is not None:
            readout_KNH = readout_KNH.index_select(1, rows_N)

    # 3. Sum the terms over the rows, by the backend that was asked for.
    inputs = RowInputs(
        labels_N=labels_N.contiguous(),
        objective=objective,
        candidate_ids_C=None if candidates_V is None else candidates_V.nonzero()[:, 0],
        rewards=entries,
        draw=_draw(objective, num_labels, vocab_size, hidden_NH.device),
        slab_bytes=slab_bytes or row_slab.default_slab_bytes(hidden_NH.device),
    )
    new_tokens = None
    if new_token_ids_R is not None and new_token_rows_RH is not None:
        new_tokens = (new_token_ids_R, new_token_rows_RH)
    loss_sum, stats_5 = _sums(backend, hidden_NH, readout_KNH, lm_head_VH, new_tokens, inputs)

    # 4. Divide. A float64 count would turn a float32 loss into float64, so it is converted first.
    if isinstance(num_tokens, Tensor):
        return loss_sum / num_tokens.to(loss_sum), stats_5
    return loss_sum / (num_labels if num_tokens is None else num_tokens), stats_5


def _check_choice(backend: str, slab_bytes: int | None) -> None:
    expected = ", ".join(BACKENDS)
    require(backend in BACKENDS, f"backend: expected one of {expected}, got {backend!r}")
    require(
        slab_bytes is None or slab_bytes > 0,
        f"slab_bytes: expected a positive number, got {slab_bytes!r}",
    )


def _proposing_states(
    hidden_NH: Tensor, readout_KNH: Tensor | None, objective: Objective
) -> Tensor | None:
    """The states that propose negatives and are taught, [K, N, H]; None for plain SFT."""
    if objective.needs_readout:
        return readout_KNH
    if objective.needs_negatives:
        # negatives_from last_layer: the last layer is the only readout layer, and learns nothing
        # from being one.
        return hidden_NH.detach()[None]
    return None


def _draw(
    objective: Objective, num_rows: int, vocab_size: int, device: torch.device
) -> Draw | None:
    if not objective.draws_negatives:
        return None
    return Draw.make(num_rows, vocab_size, device)


def _sums(
    backend: str,
    hidden_NH: Tensor,
    readout_KNH: Tensor | None,
    lm_head_VH: Tensor,
    new_tokens: tuple[Tensor, Tensor] | None,
    inputs: RowInputs,
) -> tuple[Tensor, Tensor]:
    """The loss before its division, and stats_5, by a backend."""
    operands = (hidden_NH, readout_KNH, lm_head_VH, new_tokens, inputs)
    # Autocast would project in bfloat16 whatever the dtype of the input, and rounded logits change
    # which tokens are negatives.
    with torch.autocast(hidden_NH.device.type, enabled=False):
        if backend == "reference":
            return reference.cross_layer_sums(*operands)
        states = fused.States.of(hidden_NH, readout_KNH, inputs.objective)
        chosen = backends.choose(backend, states, len(lm_head_VH), inputs)
        return fused.cross_layer_sums(chosen, *operands)


def _reward_entries(
    rewards: tuple[Tensor, ...], kept_N: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """CSR over all rows -> (keys_E, values_E) over the kept rows.

    key = kept row * V + token. Keys are ascending and unique; values of one key are added up.
    """
    offsets_N1, token_ids_E, values_E = rewards
    rows_E = torch.repeat_interleave(offsets_N1.diff(), output_size=len(token_ids_E))
    in_kept_E = kept_N[rows_E]
    kept_row_N = kept_N.cumsum(0) - 1
    all_keys_E = (kept_row_N[rows_E] * vocab_size + token_ids_E)[in_kept_E]
    keys_E, position_E = torch.unique(all_keys_E, return_inverse=True)
    sums_E = values_E.new_zeros(len(keys_E))
    return keys_E, sums_E.index_add_(0, position_E, values_E[in_kept_E])


def _connected_zero(hidden_NH: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    """A loss of exactly 0 that is part of the graph of every input.

    All ranks then run the same backward pass; under ZeRO-3 the run would hang otherwise. It is made
    of sums over empty slices, so that a NaN in an ignored row cannot reach it.
    """
    zero = hidden_NH.new_zeros((), dtype=torch.promote_types(hidden_NH.dtype, torch.float32))
    for tensor in (hidden_NH, *others):
        if tensor is not None:
            zero = zero + tensor[..., :0].sum().to(zero.dtype)
    return zero, torch.zeros(len(STATS), device=hidden_NH.device)
