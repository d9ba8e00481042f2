"""Families of bases that need care: models with experts and a router, and with linear attention.
What they cannot do is refused before training."""

from __future__ import annotations

from typing import Any

from torch import nn

from ilrec.errors import InputError

ALL_LINEAR = "all-linear"


def lora_targets(model: nn.Module, wanted: Any) -> Any:
    """The modules for peft to adapt. In a model with experts, all-linear means the linear layers of
    attention.

    transformers keeps all experts of a layer as one parameter, under other names than the files.
    LoRA on such a parameter allows no dropout and cannot be merged. peft also confuses the layers
    of a shared expert with those of the experts.
    """
    if wanted != ALL_LINEAR or not has_experts(model):
        return wanted
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "attn" in name:
            names.append(name)
    if not names:
        raise InputError(
            f"lora_target_modules: {type(model).__name__} has experts, and no attention with "
            "linear layers was found in it; name the layers to adapt"
        )
    return names


def check_adapted(model: Any) -> None:
    """Raises InputError if peft adapted single parameters, as those of experts and routers are."""
    # Not every version of peft has this field.
    parameters = getattr(model.peft_config["default"], "target_parameters", None)
    if parameters:
        raise InputError(
            f"lora_target_modules: in this model {sorted(parameters)} belong to experts or their "
            f"router, and LoRA on them cannot be merged; use {ALL_LINEAR}, which adapts the "
            "attention of such a model"
        )


def check_router(model: Any) -> None:
    """Raises InputError if a router would be trained without the auxiliary loss that balances its
    experts."""
    weight = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    trained = False
    for module in model.modules():
        if "Router" in type(module).__name__:
            trained = trained or any(p.requires_grad for p in module.parameters())
    if weight and trained:
        raise InputError(
            f"adapter: none would train the router of {type(model).__name__}, and its auxiliary "
            f"loss (router_aux_loss_coef = {weight}) is not part of the objective; use adapter: "
            "lora, which leaves experts and router as they are"
        )


def check_flattening(config: Any) -> None:
    """Raises InputError for a model with linear attention, whose state runs through the whole row
    and would not stop where the next sample begins."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    if "linear_attention" in kinds:
        raise InputError(
            "batch_layout: this model has linear attention, which would carry the state of one "
            "sample into the next one of a flattened row; use batch_layout: padded"
        )


def has_experts(model: nn.Module) -> bool:
    return any(name.endswith(".experts") for name, _ in model.named_modules())
