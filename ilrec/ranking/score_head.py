"""Logits in float32 for ranking, whatever the model's own precision.

A bfloat16 logit has 8 bits. Near 16, neighbouring values are 1/8 apart, so many items of a
catalogue get exactly the same score, and a tie counts against the target. States and weights stay
as the model has them. Only their products are summed and kept in float32.

Shapes: N positions, H hidden, V vocabulary, R trained token rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ilrec.model.head import prepare_heads, prepared_head
from ilrec.ops.head_gemm import Head


class ScoreHead(nn.Module):
    """Takes the LM head's place: hidden states [..., H] -> logits [..., V], float32.

    float64 for a float64 model. Makes no copy of the weight.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        prepare_heads(model)
        self.head = prepared_head(model)

    def forward(self, hidden: Tensor) -> Tensor:
        # The prepared head hands _project its weight, and its trained rows if there are any.
        return self.head(hidden, None, _project)


def _project(
    hidden: Tensor,
    _: None,
    weight_VH: Tensor,
    new_token_ids_R: Tensor | None = None,
    new_token_rows_RH: Tensor | None = None,
) -> Tensor:
    states_NH = hidden.reshape(-1, hidden.shape[-1])
    states_NH = states_NH.to(torch.promote_types(weight_VH.dtype, torch.float32))
    logits_NV = states_NH.new_empty(len(states_NH), len(weight_VH))
    Head.of(weight_VH, new_token_ids_R, new_token_rows_RH).project(states_NH, logits_NV)
    return logits_NV.view(*hidden.shape[:-1], -1)


@contextlib.contextmanager
def float32_scores(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, the model has a ScoreHead. For a model that is being trained."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    score_in_float32(model)
    try:
        yield
    finally:
        base.set_output_embeddings(head)


def score_in_float32(model: PreTrainedModel | PeftModel) -> None:
    """Give the model a ScoreHead, in place.

    Call it when the model has its adapter and lies on its device. Raises the InputErrors of
    prepare_heads.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.set_output_embeddings(ScoreHead(base))
