"""The LM head that the vocabulary operation reads: which module makes the logits, and which heads
are refused.

The operation runs inside that module's own `__call__`, so that ZeRO-3's hooks gather the weight for
it, and do so once. Adapters may be switched, disabled or merged after `prepare_heads`. The
operation always reads the weight from which the model's own logits would be made at that moment.

Shape letters: H hidden, V vocabulary, R trained token rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from ilrec.errors import InputError

# Config fields that cap or scale the logits outside the head, with the value that does nothing.
# With a cap, the mean of the layers' logits is no longer one projection of their mean state, on
# which the operation rests (docs/method.md). With a scale, the logits are not the head's product.
LOGIT_FIELDS = {
    "final_logit_softcapping": None,  # Gemma 2 and later
    "logits_soft_cap": None,  # RecurrentGemma
    "output_logit_soft_cap": None,  # xLSTM
    "logit_scale": 1.0,  # Cohere, MPT
    "logits_scaling": 1.0,  # Granite, HyperCLOVA X, MiniCPM 3
    "logits_mup_width_multiplier": 1.0,  # Inkling
    "lm_head_multiplier": 1.0,  # Falcon-H1
    "output_multiplier": 1.0,  # Muse
}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class CrossLayerLinear(nn.Linear):
    """The LM head. Called with `compute`, it gives its weight to the vocabulary operation instead
    of projecting."""

    def forward(
        self, hidden: Tensor, readout: Tensor | None = None, compute: Callable | None = None
    ) -> Any:
        if compute is None:
            return super().forward(hidden)
        return compute(hidden, readout, self.weight)


class CrossLayerTokenRows(TrainableTokensLayer):
    """The LM head under peft's trainable token rows. The operation gets the frozen head and the
    trained rows as two tensors."""

    def forward(
        self, hidden: Tensor, readout: Tensor | None = None, compute: Callable | None = None
    ) -> Any:
        if compute is None:
            return super().forward(hidden)
        weight: Any = self.base_layer.weight
        adapters = [] if self.disable_adapters else self.active_adapters
        # A disabled adapter leaves the base model. peft's own forward unmerges then, too.
        if self.merged and not adapters:
            self.unmerge()
        if self.merged or not adapters:
            return compute(hidden, readout, weight)

        token_ids: list[int] = []
        deltas = []
        for name in adapters:
            token_ids += self.token_indices[name]
            deltas.append(self.trainable_tokens_delta[name])
        ids_R = torch.tensor(token_ids, device=hidden.device)
        # In the head's precision, as in peft's own forward and in a merged model.
        rows_RH = torch.cat(deltas).to(weight.dtype)
        return compute(hidden, readout, weight, new_token_ids_R=ids_R, new_token_rows_RH=rows_RH)


# The exact classes. A subclass (quantised, parametrised, a model's own) may do more than multiply
# by its weight.
READABLE = {
    nn.Linear: CrossLayerLinear,
    TrainableTokensLayer: CrossLayerTokenRows,
    CrossLayerLinear: CrossLayerLinear,
    CrossLayerTokenRows: CrossLayerTokenRows,
}

# (is this layer refused, what it is and what to do instead). The first that holds is reported.
REFUSALS: list[tuple[Callable[[Any], bool], str]] = [
    (lambda layer: layer is None, "the model has no LM head; use a causal LM"),
    (
        lambda layer: isinstance(layer, BaseTunerLayer),
        "the LM head carries a {kind} adapter, which the vocabulary operation cannot see; leave "
        "lm_head out of lora_target_modules (modules_to_save and token rows work)",
    ),
    (
        lambda layer: type(layer) not in READABLE,
        "the LM head is a {kind}, expected a plain torch.nn.Linear; load the model unquantised, in "
        "bfloat16 or float32",
    ),
    (
        lambda layer: (
            type(layer.weight) is not nn.Parameter or layer.weight.dtype not in FLOAT_DTYPES
        ),
        "a quantised LM head is not supported; load the model unquantised, in bfloat16 or float32",
    ),
    (
        lambda layer: layer.bias is not None,
        "a biased LM head is not supported; use a Llama-like model without it",
    ),
]


def effective_head(model: Any) -> nn.Module:
    """The module below peft's wrappers whose call makes the logits, with the adapters as they are
    set now."""
    head = model.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        return head.token_adapter
    if isinstance(head, ModulesToSaveWrapper):
        trained = [] if head.disable_adapters else head.active_adapters
        return head.modules_to_save[trained[0]] if trained else head.original_module
    return head


def prepare_heads(model: PreTrainedModel) -> None:
    """Let the operation run inside every module that is, or may become, the effective head.

    Raises InputError if one of them cannot be read; then no module was changed.
    """
    _check_logits(model)
    heads = _possible_heads(model)
    for head in heads:
        layer = head.base_layer if isinstance(head, TrainableTokensLayer) else head
        for refused, message in REFUSALS:
            if refused(layer):
                raise InputError(f"{_name(model)}: {message.format(kind=type(layer).__name__)}")
    # Only the class is exchanged: the module keeps its weight, its hooks and its name.
    for head in heads:
        head.__class__ = READABLE[type(head)]


def prepared_head(model: Any) -> nn.Module:
    """The effective head, ready for the operation. Raises InputError if an adapter was put on it
    after `prepare_heads`."""
    head = effective_head(model)
    if not isinstance(head, CrossLayerLinear | CrossLayerTokenRows):
        raise InputError(
            f"{_name(model)}: the LM head has become a {type(head).__name__} since the objective "
            "was attached; add or load adapters before attach_objective"
        )
    return head


def _possible_heads(model: Any) -> list[Any]:
    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        return [head.original_module, *head.modules_to_save.values()]
    return [effective_head(model)]


def _check_logits(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    for field, neutral in LOGIT_FIELDS.items():
        value = getattr(config, field, neutral)
        if value not in (None, neutral):
            raise InputError(
                f"{_name(model)}: {field} = {value}: the logits are not the LM head's projection "
                "alone, which the mean over the readout layers needs; use a Llama-like model "
                "without it"
            )


def _name(model: Any) -> str:
    return model.config.name_or_path or type(model).__name__


def vocabulary_rows(model: Any) -> int:
    """The number of rows of the head. Read from the config, because under ZeRO-3 the tensor has
    size 0."""
    return model.config.get_text_config().vocab_size
