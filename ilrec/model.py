"""The causal LM that returns the ILRec loss: base model, LoRA, new tokens, readout layers.

`attach_objective` gives a Hugging Face model a forward that ends in the vocabulary operation (method.md, steps 1 to 4). The
operation runs inside the LM head's own `__call__`, so that ZeRO-3's module hooks gather the head for it, once, on
every rank, also on one whose micro-batch has no supervised token.

Shapes: B batch, T sequence, N supervised tokens, K readout layers, H hidden, V vocabulary, R trained token rows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ilrec.config import ModelConfig, ObjectiveConfig
from ilrec.errors import InputError
from ilrec.ops import IGNORE_INDEX, Objective, cross_layer_loss

# Config fields under which "the mean of the layers' logits is one projection of the mean state" does not hold (method.md,
# Notation), or the head is scaled outside the projection: Gemma 2, Cohere, Granite.
UNSUPPORTED_CONFIG = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


@dataclass
class CrossLayerOutput(ModelOutput):
    """loss: scalar. stats_5: sums over this rank's supervised tokens, in the order of `ilrec.ops.STATS`."""

    loss: Tensor | None = None
    stats_5: Tensor | None = None


class CrossLayerLinear(nn.Linear):
    """The LM head; given `compute`, it hands its weight to the vocabulary operation instead of projecting."""

    def forward(self, hidden: Tensor, readout: Tensor | None = None, compute: Callable | None = None) -> Any:
        if compute is None:
            return super().forward(hidden)
        return compute(hidden, readout, self.weight)


class CrossLayerTokenRows(TrainableTokensLayer):
    """The LM head under peft's trainable token rows: the operation gets the frozen head and the trained rows apart."""

    def forward(self, hidden: Tensor, readout: Tensor | None = None, compute: Callable | None = None) -> Any:
        if compute is None:
            return super().forward(hidden)
        adapter = self.active_adapters[0]
        ids_R = torch.tensor(self.token_indices[adapter], device=hidden.device)
        rows_RH = self.trainable_tokens_delta[adapter]
        return compute(hidden, readout, self.base_layer.weight, new_token_ids_R=ids_R, new_token_rows_RH=rows_RH)


class CrossLayerMixin:
    """The forward of a causal LM that is trained with ILRec. Without labels it is the model's own forward."""

    _objective: ObjectiveConfig
    _vocabulary_objective: Objective
    item_token_mask_V: Tensor | None

    def prepare_objective(self, objective: ObjectiveConfig, item_token_ids: list[int]) -> None:
        """Read once what the vocabulary operation needs of the settings."""
        self._objective = objective
        self._vocabulary_objective = Objective(**{name: getattr(objective, name) for name in Objective.__dataclass_fields__})
        mask_V = None
        if objective.candidates == "items":
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
        """input_ids, attention_mask, labels: int64 [B, T]; labels IGNORE_INDEX outside the response.

        num_items_in_batch: supervised tokens of the global batch, by which the sums are divided (None: of this call).
        token_rewards: (offsets_N1, token_ids, values), one CSR row per supervised token, see ilrec.collaborative.
        """
        if labels is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        outputs = self.get_decoder()(  # type: ignore[attr-defined]
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False,
            output_hidden_states=self._objective.uses_readout)
        supervised_BT = labels[:, 1:] != IGNORE_INDEX
        hidden_NH = outputs.last_hidden_state[:, :-1][supervised_BT]
        readout_KNH = self._readout(outputs.hidden_states, supervised_BT) if self._objective.uses_readout else None
        compute = functools.partial(
            _vocabulary_loss, labels_N=labels[:, 1:][supervised_BT], objective=self._vocabulary_objective,
            candidates_V=self.item_token_mask_V, token_rewards=token_rewards, num_tokens=num_items_in_batch,
            backend=self._objective.backend, slab_bytes=self._objective.slab_mib * 2**20 or None)
        loss, stats_5 = vocabulary_head(self)(hidden_NH, readout_KNH, compute)
        return CrossLayerOutput(loss=loss, stats_5=stats_5)

    def _readout(self, hidden_states: tuple[Tensor, ...], supervised_BT: Tensor) -> Tensor:
        """FinalNorm(h^{L-k}) for k = 1..K at the supervised positions (method.md, Notation): [K, N, H].

        hidden_states[-1] is the last layer's, already normed by Hugging Face, so that [-1 - k] is layer L - k. The norm is
        shared with the last layer and learns from that one only: distillation is for the layers below (step 3).
        """
        num_layers = self._objective.num_readout_layers
        distil = self._objective.distillation_weight > 0
        rows_KNH = torch.stack([hidden_states[-1 - k][:, :-1][supervised_BT] for k in range(1, num_layers + 1)])
        norm = self.get_decoder().norm  # type: ignore[attr-defined]
        with _held_fixed(norm), torch.set_grad_enabled(distil and torch.is_grad_enabled()):
            return norm(rows_KNH)


def _vocabulary_loss(hidden_NH: Tensor, readout_KNH: Tensor | None, lm_head_VH: Tensor, **kwargs: Any) -> Any:
    labels_N = kwargs.pop("labels_N")
    return cross_layer_loss(hidden_NH, readout_KNH, lm_head_VH, labels_N, **kwargs)


@contextlib.contextmanager
def _held_fixed(module: nn.Module) -> Iterator[None]:
    """No gradient for the module's parameters from what runs inside."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def vocabulary_head(model: PreTrainedModel | CrossLayerMixin) -> nn.Module:
    """The module whose call is the effective head, below peft's wrappers."""
    head = model.get_output_embeddings()  # type: ignore[union-attr]
    if isinstance(head, TrainableTokensWrapper):
        return head.token_adapter
    if isinstance(head, ModulesToSaveWrapper):
        return head.modules_to_save[head.active_adapters[0]]
    return head


def attach_objective(model: PreTrainedModel | PeftModel, objective: ObjectiveConfig, item_token_ids: list[int]) -> None:
    """Make the model's forward return the ILRec loss, in place. InputError for a model it would be wrong for."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_supported(base, objective)
    head = vocabulary_head(base)
    head.__class__ = CrossLayerTokenRows if isinstance(head, TrainableTokensLayer) else CrossLayerLinear
    # A subclass made here, under the model's own name: save_pretrained records the class's name as the architecture.
    cls = base.__class__
    base.__class__ = type(cls.__name__, (CrossLayerMixin, cls), {"__module__": cls.__module__})
    base.prepare_objective(objective, item_token_ids)


def vocabulary_rows(model: Any) -> int:
    """Rows of the head; the config, not the tensor, because ZeRO-3 shards tensors to size 0."""
    return model.config.get_text_config().vocab_size


def _check_supported(model: PreTrainedModel, objective: ObjectiveConfig) -> None:
    name = model.config.name_or_path or type(model).__name__
    for field, neutral in UNSUPPORTED_CONFIG.items():
        value = getattr(model.config, field, neutral)
        if value != neutral:
            raise InputError(f"{name}: {field} = {value}: the readout layers' mean is not one projection of this head; "
                             "use a Llama-like model without it")
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    head: Any = vocabulary_head(model)
    if not hasattr(decoder, "norm") or not hasattr(decoder, "layers"):
        raise InputError(f"{name}: {type(model).__name__} has no decoder with `layers` and `norm`; "
                         "use a Llama-like model (Llama, Qwen2, Qwen3, Mistral, SmolLM2)")
    if objective.uses_readout and objective.num_readout_layers >= len(decoder.layers):
        raise InputError(f"num_readout_layers: expected fewer than the {len(decoder.layers)} layers of {name}, "
                         f"got {objective.num_readout_layers}")
    if isinstance(head, BaseTunerLayer) and not isinstance(head, TrainableTokensLayer):
        raise InputError(f"{name}: the LM head carries a {type(head).__name__} adapter, which the vocabulary operation cannot "
                         "see; leave lm_head out of lora_target_modules (modules_to_save and token rows work)")
    weight = head.base_layer.weight if isinstance(head, TrainableTokensLayer) else head.weight
    if not weight.is_floating_point() or getattr(head, "bias", None) is not None:  # type: ignore[operator]
        raise InputError(f"{name}: a quantised or biased LM head is not supported; load the model in bfloat16 or float32")


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows for tokens that the tokenizer has and the model lacks. A padded vocabulary keeps its rows."""
    if len(tokenizer) > vocabulary_rows(model):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def add_adapter(model: PreTrainedModel, config: ModelConfig, item_token_ids: list[int]) -> PeftModel:
    """A fresh LoRA adapter, with the item tokens' embedding and head rows trained beside it (peft token rows)."""
    rows: dict[str, list[int]] | None = None
    if config.train_item_tokens and item_token_ids:
        rows = {_name_of(model, model.get_input_embeddings()): item_token_ids}
        if not model.config.tie_word_embeddings:
            rows[_name_of(model, model.get_output_embeddings())] = item_token_ids
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules, trainable_token_indices=rows)
    return _saved_without_embeddings(get_peft_model(model, adapter))


def _saved_without_embeddings(model: PeftModel) -> PeftModel:
    """peft adds both whole [V, H] matrices to an adapter once the vocabulary has grown; the trained rows are saved anyway."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return model


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module).rsplit(".", 1)[-1]


def load_adapter(model: PreTrainedModel, directory: str | Path, is_trainable: bool) -> PeftModel:
    """An adapter on its base. InputError when its tensors do not fit the base or are missing."""
    try:
        return _saved_without_embeddings(PeftModel.from_pretrained(model, str(directory), is_trainable=is_trainable))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise InputError(f"{directory}: this adapter does not load on {model.config.name_or_path}: {reason}") from error
