"""The vocabulary operation: hidden states in, the whole ILRec loss out, without ever holding all
logits.

`cross_layer_loss` is the only public function. It checks its input, drops the positions without a
label and hands the
rest to a backend: `row_slab` (fast), `vocab_stream` (CUDA, tight memory) or `reference` (the
    specification, equation by equation).
Tensors only: this package knows no tokenizer, no trainer, no ranks and no files.

Shape letters: N supervised tokens, K readout layers, H hidden, V vocabulary, R new tokens, E reward
    entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilrec.ops import backends, checks, fused, reference, row_slab
from ilrec.ops.checks import IGNORE_INDEX

STATS = ("preference", "distillation", "reward", "num_negatives", "num_rows_without_negative")
BACKENDS = ("auto", "reference", "row_slab", "vocab_stream")
THRESHOLDS = ("probability", "logit")
DISTILLATION_TARGETS = ("ensemble", "per_layer")
NEGATIVE_TOKENS = ("all", "items", "continuations")
REWARD_TOKENS = ("negatives", "continuations")

__all__ = [
    "BACKENDS",
    "DISTILLATION_TARGETS",
    "IGNORE_INDEX",
    "NEGATIVE_TOKENS",
    "REWARD_TOKENS",
    "STATS",
    "THRESHOLDS",
    "Objective",
    "cross_layer_loss",
]


@dataclass(frozen=True)
class Objective:
    """What is optimised; the meaning and the default of each setting are in
    ilrec/config/sections.py (ObjectiveConfig).

    Raises ValueError for a negative or non-finite weight, a non-positive alpha or temperature, or
    an unknown choice.
    """

    beta: float
    distillation_weight: float
    reward_weight: float
    threshold: str
    alpha: float
    negative_tokens: str
    max_negatives: int
    distillation_target: str
    reward_tokens: str
    reward_temperature: float

    def __post_init__(self) -> None:
        for name in ("beta", "distillation_weight", "reward_weight"):
            value = getattr(self, name)
            checks.require(
                math.isfinite(value) and value >= 0,
                f"{name}: expected a finite number >= 0, got {value!r}",
            )
        for name in ("alpha", "reward_temperature"):
            value = getattr(self, name)
            checks.require(
                math.isfinite(value) and value > 0,
                f"{name}: expected a finite number > 0, got {value!r}",
            )
        for name, choices in (
            ("threshold", THRESHOLDS),
            ("distillation_target", DISTILLATION_TARGETS),
            ("negative_tokens", NEGATIVE_TOKENS),
            ("reward_tokens", REWARD_TOKENS),
        ):
            value = getattr(self, name)
            checks.require(
                value in choices, f"{name}: expected one of {', '.join(choices)}, got {value!r}"
            )
        checks.require(
            isinstance(self.max_negatives, int) and self.max_negatives >= 0,
            f"max_negatives: expected an integer >= 0 (0: no cap), got {self.max_negatives!r}",
        )

    @property
    def needs_negatives(self) -> bool:
        """Whether any term looks at the hard negatives S."""
        return self.beta > 0 or (self.reward_weight > 0 and self.reward_tokens == "negatives")

    @property
    def limits_negatives(self) -> bool:
        """Whether S is drawn from each row's own continuations."""
        return self.needs_negatives and self.negative_tokens == "continuations"

    @property
    def needs_continuations(self) -> bool:
        """Whether any term looks at the tokens that continue an item, or at their rewards."""
        return self.reward_weight > 0 or self.limits_negatives

    @property
    def needs_readout(self) -> bool:
        """Whether any term looks at the readout layers; False is plain SFT."""
        return self.needs_negatives or self.distillation_weight > 0


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
    """The ILRec objective (arXiv 2602.17410; docs/method.md, steps 1, 2, 3 and 4) over the
    positions with a label.

    loss = (preference_sum + distillation_weight * distillation_sum + reward_weight * reward_sum) /
    num_tokens

    Gradients: hidden_NH, lm_head_VH and new_token_rows_RH learn from preference and reward, through
    the last layer's logits only; readout_KNH learns from distillation only. Distillation gives
    nothing to the head, because moving the head to suit the readout layers would move the last
    layer's own distribution, which is the teacher. Selection and weights of the negatives, the
    teacher and the reward's soft target carry no gradient.

    Args:
        hidden_NH: float, last layer's states after the final norm. Rows with label IGNORE_INDEX are
            dropped here.
        readout_KNH: as hidden_NH, one per readout layer, each after the final norm; None only for
            plain SFT.
        lm_head_VH: the same dtype. Frozen (requires_grad False): nothing of size V x H is
            allocated, but by reference.
        labels_N: int64 in [0, V), or IGNORE_INDEX.
        candidates_V: bool, the item tokens, if and only if objective.negative_tokens is `items`:
            limits S, and distillation compares P and Pe renormalised over them.
        token_rewards: CSR (offsets_N1 int64, token_ids_E int64, values_E float >= 0), one row per
            row of labels_N, the ignored ones included; on any device: the tokens that continue an
            item, and their rewards, which may be 0. Entries of one row that name the same token add
            up. A row without a positive reward on the tokens that objective.reward_tokens names
            contributes 0 to that term. With objective.negative_tokens `continuations`, S is drawn
            from the row's entries. Needed if reward_weight > 0 or S is so limited, else unread.
        num_tokens: the normaliser: supervised tokens of the GLOBAL batch; None: those of this call.
            A 0-dim tensor is never read on the host.
        new_token_ids_R, new_token_rows_RH: int64 unique ids, and the rows that REPLACE the head's
            there (trainable token rows beside a frozen head; any float dtype).
        backend: one of BACKENDS; auto: row_slab, or vocab_stream where only few rows fit into
            slab_bytes (ilrec/ops/backends.py).
        slab_bytes: memory for logits; None: row_slab.SLAB_BYTES of the device type.

    Returns:
        loss: 0-dim, float32 (float64 for float64 input). Without any label it is exactly 0, with
            gradients of zeros.
        stats_5: float32, detached SUMS over this call's supervised tokens, named by STATS. A term
            with weight 0 is not computed and reads 0; where no term needs S, S counts as empty.

    Raises:
        ValueError: a shape, dtype, device, value or backend that does not fit; the text says what
            was expected.
    """
    checks.require(
        backend in BACKENDS, f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}"
    )
    checks.require(
        slab_bytes is None or slab_bytes > 0,
        f"slab_bytes: expected a positive number, got {slab_bytes!r}",
    )
    checks.check_states(hidden_NH, readout_KNH, lm_head_VH, labels_N, objective)
    checks.check_options(
        lm_head_VH, candidates_V, objective, num_tokens, new_token_ids_R, new_token_rows_RH
    )
    rewards = (
        checks.rewards_on_device(token_rewards, labels_N) if objective.needs_continuations else None
    )
    num_labels = checks.check_values(
        labels_N, len(lm_head_VH), candidates_V, rewards, new_token_ids_R
    )
    if num_labels == 0:
        return _connected_zero(hidden_NH, readout_KNH, lm_head_VH, new_token_rows_RH)
    if not objective.needs_readout:
        readout_KNH = None
    kept_N = labels_N != IGNORE_INDEX
    if num_labels < len(labels_N):
        rows_N = kept_N.nonzero()[:, 0]
        hidden_NH, labels_N = hidden_NH.index_select(0, rows_N), labels_N.index_select(0, rows_N)
        readout_KNH = readout_KNH.index_select(1, rows_N) if readout_KNH is not None else None
    terms: dict[str, Any] = {
        "hidden_NH": hidden_NH,
        "readout_KNH": readout_KNH,
        "lm_head_VH": lm_head_VH,
        "labels_N": labels_N,
        "objective": objective,
        "candidates_V": candidates_V,
        "rewards": _reward_entries(rewards, kept_N, len(lm_head_VH))
        if rewards is not None
        else None,
        "new_tokens": (new_token_ids_R, new_token_rows_RH) if new_token_ids_R is not None else None,
    }
    # Autocast would project in bfloat16 whatever the dtype of the input, and rounded logits flip
    # selections.
    with torch.autocast(hidden_NH.device.type, enabled=False):
        if backend == "reference":
            loss_sum, stats_5 = reference.cross_layer_sums(**terms)
        else:
            slab_bytes = slab_bytes or row_slab.default_slab_bytes(hidden_NH.device)
            states = fused.States.of(hidden_NH, readout_KNH, objective)
            chosen = backends.choose(backend, states, num_labels, len(lm_head_VH), slab_bytes)
            loss_sum, stats_5 = fused.cross_layer_sums(chosen, **terms, slab_bytes=slab_bytes)
    if isinstance(num_tokens, Tensor):
        # A float64 count would turn a float32 loss into float64.
        return loss_sum / num_tokens.to(loss_sum), stats_5
    return loss_sum / (num_labels if num_tokens is None else num_tokens), stats_5


def _reward_entries(
    rewards: tuple[Tensor, ...], kept_N: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """CSR over all rows -> (keys, values) over the kept rows: key = kept row * V + token, ascending
    and unique."""
    offsets_N1, token_ids_E, values_E = rewards
    rows_E = torch.repeat_interleave(offsets_N1.diff(), output_size=len(token_ids_E))
    kept_row_N = kept_N.cumsum(0) - 1
    in_kept_E = kept_N[rows_E]
    all_keys_E = (kept_row_N[rows_E] * vocab_size + token_ids_E)[in_kept_E]
    keys_E, position_E = torch.unique(all_keys_E, return_inverse=True)
    return keys_E, values_E.new_zeros(len(keys_E)).index_add_(0, position_E, values_E[in_kept_E])


def _connected_zero(hidden_NH: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exactly 0, but part of the graph of every input: all ranks then run the same backward pass
    (ZeRO-3 hangs otherwise). Sums of nothing, so that a NaN in an ignored row cannot leak in."""
    zero = hidden_NH.new_zeros((), dtype=torch.promote_types(hidden_NH.dtype, torch.float32))
    for tensor in (hidden_NH, *others):
        if tensor is not None:
            zero = zero + tensor[..., :0].sum().to(zero.dtype)
    return zero, torch.zeros(len(STATS), device=hidden_NH.device)
