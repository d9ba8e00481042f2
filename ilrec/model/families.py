"""Families of bases that need care: experts with a router, linear attention. What they cannot do is
refused before training."""

from __future__ import annotations

from typing import Any

from torch import nn

from ilrec.errors import InputError

ALL_LINEAR = "all-linear"


def lora_targets(model: nn.Module, wanted: Any) -> Any:
    """What peft is to adapt. With experts, all-linear is the linear layers of attention.

    transformers keeps all experts of a layer as one parameter, under other names than the files, so
    that LoRA on them allows no dropout and cannot be merged; peft takes a shared expert's layers
    for theirs.
    """
    if wanted != ALL_LINEAR or not has_experts(model):
        return wanted
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "attn" in name
    ]
    if not names:
        raise InputError(
            f"lora_target_modules: {type(model).__name__} has experts, and no attention with linear layers was found; "
            "name the layers to adapt"
        )
    return names


def check_adapted(model: Any) -> None:
    """Raises InputError where peft adapted single parameters, which experts and routers are."""
    parameters = getattr(
        model.peft_config["default"], "target_parameters", None
    )  # not in every version of peft
    if parameters:
        raise InputError(
            f"lora_target_modules: in this model {sorted(parameters)} belong to experts or their router: LoRA on them "
            f"cannot be merged; use {ALL_LINEAR}, which adapts the attention of such a model"
        )


def check_router(model: Any) -> None:
    """Raises InputError where a router would be trained without the auxiliary loss that balances
    its experts."""
    weight = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    trained = any(
        parameter.requires_grad
        for module in model.modules()
        if "Router" in type(module).__name__
        for parameter in module.parameters()
    )
    if weight and trained:
        raise InputError(
            f"adapter: none trains the router of {type(model).__name__}, whose auxiliary loss (router_aux_loss_coef = "
            f"{weight}) is no part of the objective; use adapter: lora, which leaves experts and router as they are"
        )


def check_flattening(config: Any) -> None:
    """Raises InputError where a state runs through a row: linear attention does not see where the
    next sample begins."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    if "linear_attention" in kinds:
        raise InputError(
            "batch_layout: this model has linear attention, which would carry one sample's state into the next of a "
            "flattened row; use batch_layout: padded"
        )


def has_experts(model: nn.Module) -> bool:
    return any(name.endswith(".experts") for name, _ in model.named_modules())
