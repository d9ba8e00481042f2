"""The causal LM that returns the ILRec loss.

`attach_objective` gives a Hugging Face model a forward that ends in the vocabulary operation
(docs/method.md, steps 1 to 4). Every rank calls it in every micro-step, also a rank whose
micro-batch has no supervised token. Which module is the LM head is head.py's matter.

Shape letters: B batch, T sequence, N supervised tokens, K readout layers, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ilrec.config.sections import ObjectiveConfig
from ilrec.errors import InputError
from ilrec.model.families import check_router
from ilrec.model.head import prepare_heads, prepared_head, vocabulary_rows
from ilrec.ops import IGNORE_INDEX, Objective, cross_layer_loss

# Where samples begin in a flattened row: transformers' FlashAttentionKwargs.
FLASH_BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass
class CrossLayerOutput(ModelOutput):
    """loss: scalar.

    stats_5: sums over this rank's supervised tokens, in the order of `ilrec.ops.STATS`.
    nonfinite_K2: int64, still on the device. In how many of this rank's supervised tokens the state
        of the last layer, of layer L - 1, ... and of layer L - K has a NaN or inf; and as the last
        entry whether the loss is NaN or inf (0 or 1).
    """

    loss: Tensor | None = None
    stats_5: Tensor | None = None
    nonfinite_K2: Tensor | None = None


class CrossLayerMixin:
    """The forward of a causal LM that is trained with ILRec. Called without labels, it is the
    model's own forward."""

    _objective: ObjectiveConfig
    _vocabulary_objective: Objective
    item_token_mask_V: Tensor | None

    def prepare_objective(self, objective: ObjectiveConfig, item_token_ids: list[int]) -> None:
        """Keep what the forward needs of the settings, read once.

        item_token_ids: the tokens that occur in an item; looked at if negative_tokens is `items`.
        """
        self._objective = objective
        self._vocabulary_objective = objective.vocabulary_objective()
        mask_V = None
        if objective.negative_tokens == "items":
            mask_V = torch.zeros(vocabulary_rows(self), dtype=torch.bool)
            mask_V[item_token_ids] = True
        self.register_buffer("item_token_mask_V", mask_V, persistent=False)  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        token_rewards: tuple[Tensor, Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The loss, and what is logged of it (CrossLayerOutput).

        input_ids, attention_mask, labels: int64 [B, T]; labels are IGNORE_INDEX outside the
            response.
        num_items_in_batch: supervised tokens of the global batch, by which the sums are divided.
            None: those of this call.
        token_rewards: (offsets_N1, token_ids, values), one CSR row per supervised token, see
            ilrec.collaborative.

        Samples flattened into one row (B = 1) come without attention_mask, and with position_ids
        that begin anew at each sample (and with FLASH_BOUNDARIES, where the attention is
        flash_attention_2). Attention then stays within a sample.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]

        # The decoder alone, without the head: its logits would be [B, T, V].
        flattened = {}
        for name in ("position_ids", *FLASH_BOUNDARIES):
            if name in kwargs:
                flattened[name] = kwargs[name]
        needs_readout = self._vocabulary_objective.needs_readout
        outputs = self.get_decoder()(  # type: ignore[attr-defined]
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=needs_readout,
            **flattened,
        )

        # Position t predicts token t + 1. Only positions whose next token has a label are kept.
        supervised_BT = labels[:, 1:] != IGNORE_INDEX
        hidden_NH = outputs.last_hidden_state[:, :-1][supervised_BT]
        readout_KNH = None
        if needs_readout:
            readout_KNH = self._readout(outputs.hidden_states, supervised_BT)

        # The operation runs inside the head's own call, where ZeRO-3 has gathered the weight.
        compute = functools.partial(
            _vocabulary_loss,
            labels_N=labels[:, 1:][supervised_BT],
            objective=self._vocabulary_objective,
            candidates_V=self.item_token_mask_V,
            token_rewards=token_rewards,
            num_tokens=num_items_in_batch,
            backend=self._objective.backend,
            slab_bytes=self._objective.slab_mib * 2**20 or None,
        )
        loss, stats_5 = prepared_head(self)(hidden_NH, readout_KNH, compute)
        nonfinite_K2 = _count_nonfinite(hidden_NH, readout_KNH, loss)
        return CrossLayerOutput(loss=loss, stats_5=stats_5, nonfinite_K2=nonfinite_K2)

    def _readout(self, hidden_states: tuple[Tensor, ...], supervised_BT: Tensor) -> Tensor:
        """FinalNorm(h^{L-k}) for k = 1..K at the supervised positions (docs/method.md): [K, N, H].

        hidden_states[-1] is the last layer's, already normed by Hugging Face, so [-1 - k] is layer
        L - k. The norm is shared with the last layer and learns from that layer only: distillation
        is for the layers below (step 3).
        """
        distil = self._objective.distillation_weight > 0
        layers = []
        for k in range(1, self._objective.num_readout_layers + 1):
            layers.append(hidden_states[-1 - k][:, :-1][supervised_BT])
        rows_KNH = torch.stack(layers)
        norm = self.get_decoder().norm  # type: ignore[attr-defined]
        with _held_fixed(norm), torch.set_grad_enabled(distil and torch.is_grad_enabled()):
            return norm(rows_KNH)


def _vocabulary_loss(
    hidden_NH: Tensor, readout_KNH: Tensor | None, lm_head_VH: Tensor, **kwargs: Any
) -> Any:
    """cross_layer_loss on states of the head's dtype.

    Theirs may differ from it (modules kept in float32, autocast). The states are converted and not
    the head, of which a copy would have size V x H.
    """
    labels_N = kwargs.pop("labels_N")
    hidden_NH = hidden_NH.to(lm_head_VH.dtype)
    if readout_KNH is not None:
        readout_KNH = readout_KNH.to(lm_head_VH.dtype)
    return cross_layer_loss(hidden_NH, readout_KNH, lm_head_VH, labels_N, **kwargs)


@torch.no_grad()
def _count_nonfinite(hidden_NH: Tensor, readout_KNH: Tensor | None, loss: Tensor) -> Tensor:
    """CrossLayerOutput.nonfinite_K2."""
    counts = [_nonfinite_rows(hidden_NH[None])]
    if readout_KNH is not None:
        counts.append(_nonfinite_rows(readout_KNH))
    counts.append(loss.isfinite().logical_not().to(torch.int64)[None])
    return torch.cat(counts)


def _nonfinite_rows(states_KNH: Tensor) -> Tensor:
    """In how many rows of each layer there is a NaN or inf, [K]."""
    # A row's largest magnitude is NaN or inf exactly if the row holds one. Unlike isfinite() on the
    # states this needs no K x N x H mask.
    largest_KN = torch.linalg.vector_norm(states_KNH, torch.inf, dim=-1)
    return largest_KN.isfinite().logical_not().sum(-1)


@contextlib.contextmanager
def _held_fixed(module: nn.Module) -> Iterator[None]:
    """What runs inside gives no gradient to the module's parameters."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def attach_objective(
    model: PreTrainedModel | PeftModel, objective: ObjectiveConfig, item_token_ids: list[int]
) -> None:
    """Make the model's forward return the ILRec loss, in place.

    Raises InputError for a model for which that loss would be wrong.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_decoder(base, objective)
    check_router(base)
    prepare_heads(base)
    # The subclass keeps the name of the model's class, because save_pretrained records that name as
    # the architecture.
    cls = base.__class__
    base.__class__ = type(cls.__name__, (CrossLayerMixin, cls), {"__module__": cls.__module__})
    base.prepare_objective(objective, item_token_ids)


def _check_decoder(model: PreTrainedModel, objective: ObjectiveConfig) -> None:
    name = model.config.name_or_path or type(model).__name__
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    if not hasattr(decoder, "norm") or not hasattr(decoder, "layers"):
        raise InputError(
            f"{name}: {type(model).__name__} has no decoder with `layers` and `norm`; "
            "use a Llama-like model (Llama, Qwen2, Qwen3, Mistral, SmolLM2)"
        )
    needs_readout = objective.vocabulary_objective().needs_readout
    num_layers = len(decoder.layers)
    if needs_readout and objective.num_readout_layers >= num_layers:
        raise InputError(
            f"num_readout_layers: expected fewer than the {num_layers} layers of {name}, "
            f"got {objective.num_readout_layers}"
        )
