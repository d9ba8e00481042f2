"""Does the merged model say what base and adapter say? Logits of both, computed layer by layer in
float32, whatever the model's size.

Both sides are transformers' model on the meta device, peft's adapter on one of them; a layer's
weights are read when it is called and dropped after. Nothing here is the merge's own arithmetic.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ilrec.errors import InputError
from ilrec.merging.adapter import PREFIX
from ilrec.merging.plan import EMBEDDING
from ilrec.merging.sources import MergeSource
from ilrec.model.families import has_experts
from ilrec.model.loading import read_config
from ilrec.model.source import ModelSource
from ilrec.weights.tensor_files import DTYPES, StoredTensor, read_tensors

TEXTS = ("The user has interacted with these items:", "Recommend the next item for", "1, 2, 3")
NUM_RANDOM_PROMPTS, PROMPT_TOKENS = 5, 16
# Times what rounding every written weight once more does. The merge rounds once; the other side
# also sums in another order, which in float32 counts as much as the weights' rounding. Measured:
# docs/log.md.
TOLERANCE = 4.0
Change = Callable[[Tensor, torch.dtype], Tensor]
# What peft puts between a module's name and the base's own parameter.
PEFT_PARTS = re.compile(r"\.(token_adapter|base_layer|original_module)(?=\.)")


@dataclass(frozen=True)
class Comparison:
    """Over all positions and tokens. noise, difference: root mean squares; agreement: share of
    positions with the same first choice."""

    max_difference: float
    difference: float
    noise: float
    agreement: float

    @property
    def is_rounding(self) -> bool:
        return self.difference <= TOLERANCE * self.noise

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.max_difference:.3g}; root mean square {self.difference:.3g}, {self.noise:.3g} "
            f"where every written weight is rounded once more; same first choice at {self.agreement:.1%} of the positions"
        )


@torch.no_grad()
def verify(merged: Path, source: MergeSource) -> Comparison:
    """Raises InputError where the logits differ by more than rounding makes them."""
    if has_experts(empty_model(merged)):
        raise InputError(
            f"--verify: {merged} has experts, which transformers keeps under other names than the files: such a model is "
            "merged and not verified"
        )
    tokenizer = AutoTokenizer.from_pretrained(merged)
    vocab_size = AutoConfig.from_pretrained(merged).get_text_config().vocab_size
    input_ids_BT = prompts(tokenizer, vocab_size)
    parts = {**read_tensors(source.base), **read_tensors(source.weights, "adapter_model")}
    expected_BTV = logits(adapted_model(source, vocab_size), parts, input_ids_BT)
    tensors = read_tensors(merged)
    actual_BTV = logits(empty_model(merged), tensors, input_ids_BT)
    rounded_BTV = logits(empty_model(merged), tensors, input_ids_BT, rounded_once_more)
    difference_BTV = actual_BTV - expected_BTV
    found = Comparison(
        difference_BTV.abs().max().item(),
        _root_mean_square(difference_BTV),
        _root_mean_square(rounded_BTV - actual_BTV),
        (actual_BTV.argmax(-1) == expected_BTV.argmax(-1)).float().mean().item(),
    )
    if not found.is_rounding:
        raise InputError(
            f"{merged} does not say what {source.adapter} on {source.base} says: {found}; do not use it, and please "
            "report this with its MERGE.json"
        )
    return found


def _root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def rounded_once_more(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Each value moved by up to half of its dtype's spacing."""
    spacing = torch.finfo(dtype).eps * rows.abs()
    return rows + spacing * (
        torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    )


def prompts(tokenizer: Any, vocab_size: int) -> Tensor:
    """Some text, cut or repeated to one length, and random tokens, the newest (item tokens are)
    among them: int64 [B, T]."""
    generator = torch.Generator().manual_seed(0)
    newest = torch.arange(vocab_size - PROMPT_TOKENS, vocab_size).clamp(min=0)
    rows = [
        torch.randint(vocab_size, (PROMPT_TOKENS,), generator=generator)
        for _ in range(NUM_RANDOM_PROMPTS)
    ]
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        rows.append(ids.repeat(PROMPT_TOKENS // len(ids) + 1)[:PROMPT_TOKENS])
    return torch.stack([*rows, newest])


def empty_model(directory: Path) -> PreTrainedModel:
    """On the meta device but for buffers that no file holds (rotary frequencies)."""
    try:
        config = read_config(ModelSource(base=str(directory)))
    except ValueError as error:
        raise InputError(f"--verify: {directory}: {error}") from error
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()


def adapted_model(source: MergeSource, num_tokens: int) -> PeftModel:
    """Base, resized as training resizes it, and adapter, both without values."""
    model = empty_model(source.base)
    if num_tokens > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    return PeftModel(
        model, PeftConfig.from_pretrained(str(source.adapter), inference_mode=True)
    ).eval()


def logits(
    model: Any,
    tensors: Mapping[str, StoredTensor],
    input_ids_BT: Tensor,
    change: Change = lambda rows, _: rows,
) -> Tensor:
    """float32 [B, T, V]. Embedding, each decoder layer, norm and head get their weights, changed by
    `change`, when they are called."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder: Any = base.get_decoder()
    parts = {*decoder.children(), *decoder.layers, base.get_output_embeddings()} - {decoder.layers}
    for name, module in base.named_modules():
        if module in parts:
            stream_weights(module, name, tensors, change)
    return model(input_ids=input_ids_BT).logits


def stream_weights(
    module: nn.Module, name: str, tensors: Mapping[str, StoredTensor], change: Change
) -> None:
    """Before each call of the module: what it has on the meta device is read; after it, dropped."""
    empty = {
        own: parameter.shape for own, parameter in module.named_parameters() if parameter.is_meta
    }

    def read(*_: Any) -> None:
        for own, shape in empty.items():
            set_module_tensor_to_device(
                module, own, "cpu", value=stored(tensors, f"{name}.{own}", shape, change)
            )

    def drop(*_: Any) -> None:
        for own in empty:
            set_module_tensor_to_device(module, own, "meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)


def stored(
    tensors: Mapping[str, StoredTensor], name: str, shape: torch.Size, change: Change
) -> Tensor:
    """The tensor behind a parameter, in float32. Rows that a file lacks are 0: the adapter's token
    rows take their place."""
    tensor = next((tensors[key] for key in places(tensors, name, shape) if key in tensors), None)
    if tensor is None:
        raise InputError(
            f"{name}: neither in the base nor in the adapter, though peft expects it; the adapter is incomplete"
        )
    rows = change(tensor.rows().float(), DTYPES[tensor.dtype])
    return (
        rows
        if rows.shape == shape
        else torch.cat([rows, rows.new_zeros(shape[0] - len(rows), *shape[1:])])
    )


def places(tensors: Mapping[str, StoredTensor], name: str, shape: torch.Size) -> Iterator[str]:
    """Names to look for, in this order: the adapter's, the base's; of a tied head the base's
    embedding, unless it was resized."""
    yield from _names(name)
    embedding = next(
        (key for key in tensors if key.endswith(EMBEDDING) and not key.startswith(PREFIX)), ""
    )
    if name.startswith("lm_head.") and embedding:
        if tensors[embedding].shape == shape:
            yield embedding
        yield from _names(embedding.removesuffix(".weight") + name.removeprefix("lm_head"))


def _names(parameter: str) -> Iterator[str]:
    saved = PREFIX + re.sub(r"\.default(?=\.|$)", "", parameter)
    yield from (
        saved,
        saved.replace(".modules_to_save.", "."),
        saved.replace("_vector.weight", "_vector"),
    )
    yield PEFT_PARTS.sub("", parameter)
