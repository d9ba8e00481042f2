"""The names that peft gives to the tensors of an adapter (peft 0.21, peft/utils/save_and_load.py).

A name is the prefix, the module and the part: `base_model.model.` +
`model.layers.0.self_attn.q_proj` + `.lora_A.weight`.
"""

from __future__ import annotations

from ilrec.errors import InputError
from ilrec.weights.tensor_files import StoredTensor

PREFIX = "base_model.model."
FACTORS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
# A tensor that is saved whole has one of these names, where {} is weight or bias. If a module has
# several of them, the first one here is the trained tensor.
WHOLE = ("modules_to_save.{}", "{}", "token_adapter.base_layer.{}", "base_layer.{}")
# peft's copy of the tensor that modules_to_save replaces. It is not used.
FROZEN = "original_module.{}"


def _all_parts() -> list[str]:
    """All names of parts, the longest first: `x.base_layer.weight` also ends with `.weight`."""
    parts = [*FACTORS, TOKEN_ROWS]
    for kind in ("weight", "bias"):
        parts += [form.format(kind) for form in (*WHOLE, FROZEN)]
    return sorted(parts, key=len, reverse=True)


PARTS = _all_parts()


def split_name(tensor: StoredTensor) -> tuple[str, str]:
    """(module, part) of a tensor of an adapter.

    Raises InputError if the name is not one that peft gives to a LoRA adapter's tensor.
    """
    if tensor.name.startswith(PREFIX):
        name = tensor.name.removeprefix(PREFIX)
        for part in PARTS:
            if name.endswith(f".{part}"):
                return name.removesuffix(f".{part}"), part
    raise InputError(f"{tensor.path}: {tensor.name} is not a known tensor of a LoRA adapter")
