"""Names of an adapter's tensors, taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilrec.errors import InputError
from ilrec.merging.adapter_names import split_name
from ilrec.weights.tensor_files import StoredTensor

LAYER = "model.layers.0"


def split(name: str) -> tuple[str, str]:
    return split_name(StoredTensor(Path("adapter_model.safetensors"), name, "F32", (2, 2), 0))


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (f"{LAYER}.self_attn.q_proj", "lora_A.weight"),
        (f"{LAYER}.self_attn.q_proj", "lora_magnitude_vector"),
        ("model.embed_tokens", "lora_embedding_B"),
        ("model.embed_tokens", "token_adapter.trainable_tokens_delta"),
        # These end with `.weight` or `.bias`, too.
        ("model.embed_tokens", "token_adapter.base_layer.weight"),
        ("model.embed_tokens", "base_layer.weight"),
        ("lm_head", "modules_to_save.weight"),
        ("lm_head", "original_module.bias"),
        (f"{LAYER}.input_layernorm", "weight"),
        (f"{LAYER}.self_attn.q_proj", "bias"),
    ],
)
def test_module_and_part(module, part):
    assert split(f"base_model.model.{module}.{part}") == (module, part)


@pytest.mark.parametrize("name", ["lm_head.weight", "base_model.model.lm_head.lora_C.values"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is not a known tensor"):
        split(name)
