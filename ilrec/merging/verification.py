"""Checks that the merged model computes the logits that base and adapter compute, in float32.

Both sides are built from transformers' own model, without weights; on the side of base and adapter
peft's adapter is put on it. Then some prompts run through both. Whenever a layer is called, its
weights are read from the files, and dropped after the call: one layer is in memory at a time,
whatever the model's size. Nothing of the merge's own arithmetic is used, so that a mistake in it
shows.

The logits cannot be equal in every bit, because the merge rounds its sums. How much rounding
matters is measured on the same model: a third run, of the merged model with every weight rounded
once more.

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
from ilrec.merging.adapter_names import PREFIX
from ilrec.merging.sources import MergeSource
from ilrec.model.families import has_experts
from ilrec.model.loading import read_config
from ilrec.model.source import ModelSource
from ilrec.weights.tensor_files import DTYPES, EMBEDDING, StoredTensor, read_tensors

TEXTS = ("The user has interacted with these items:", "Recommend the next item for", "1, 2, 3")
NUM_RANDOM_PROMPTS, PROMPT_TOKENS = 5, 16
# A merge passes if the logits differ by at most so many times what rounding every written weight
# once more makes. The merge rounds once; the other side also sums in another order, which in
# float32 counts as much as the weights' rounding. Measured (docs/merging.md): 0.4 to 1.4 for right
# merges of all kinds, 20 and more with one matrix of fourteen forgotten.
TOLERANCE = 4.0
# What peft puts between a module's name and the base's own parameter.
PEFT_PARTS = re.compile(r"\.(token_adapter|base_layer|original_module)(?=\.)")
# peft's name of the adapter within a loaded model, which the files' names lack.
ADAPTER_NAME = re.compile(r"\.default(?=\.|$)")

# Changes a tensor after it is read: (float32 values, the dtype that they are stored in) -> values.
Perturbation = Callable[[Tensor, torch.dtype], Tensor]


@dataclass(frozen=True)
class LogitComparison:
    """The merged model's logits against those of base and adapter, over all positions and tokens.

    max_difference: the largest of any logit. difference, noise: root mean squares, of the
    difference and of what rounding once more makes. agreement: the share of positions at which both
    have the same first choice.
    """

    max_difference: float
    difference: float
    noise: float
    agreement: float

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is no larger than rounding explains."""
        return self.difference <= TOLERANCE * self.noise

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.max_difference:.3g}; root mean square "
            f"{self.difference:.3g}, {self.noise:.3g} where every written weight is rounded once "
            f"more; same first choice at {self.agreement:.1%} of the positions"
        )


@torch.no_grad()
def verify(merged: Path, source: MergeSource) -> LogitComparison:
    """Compares the logits of the model in `merged` with those of the base and adapter it was merged
    from. Raises InputError if they differ by more than rounding explains."""
    if has_experts(empty_model(merged)):
        raise InputError(
            f"--verify: {merged} has experts, which transformers keeps under other names than the "
            "files: such a model is merged, but cannot be verified"
        )
    # The merged model's tokenizer is used, so that one that does not load is noticed here.
    tokenizer = AutoTokenizer.from_pretrained(merged)
    vocab_size = AutoConfig.from_pretrained(merged).get_text_config().vocab_size
    input_ids_BT = make_prompts(tokenizer, vocab_size)

    # What base and adapter compute. The adapter's tensors have names of their own.
    parts = {**read_tensors(source.base), **read_tensors(source.weights, "adapter_model")}
    expected_BTV = compute_logits(adapted_model(source, vocab_size), parts, input_ids_BT)

    # What the merged model computes, as it is and with every weight rounded once more.
    tensors = read_tensors(merged)
    actual_BTV = compute_logits(empty_model(merged), tensors, input_ids_BT)
    rounded_BTV = compute_logits(empty_model(merged), tensors, input_ids_BT, round_once_more)

    # Judged by root mean squares: the largest difference also grows with the number of logits.
    difference_BTV = actual_BTV - expected_BTV
    same_choice_BT = actual_BTV.argmax(-1) == expected_BTV.argmax(-1)
    found = LogitComparison(
        max_difference=difference_BTV.abs().max().item(),
        difference=_root_mean_square(difference_BTV),
        noise=_root_mean_square(rounded_BTV - actual_BTV),
        agreement=same_choice_BT.float().mean().item(),
    )
    if not found.is_rounding:
        raise InputError(
            f"{merged} does not compute what {source.adapter} on {source.base} computes: {found}; "
            "do not use it, and please report this with its MERGE.json"
        )
    return found


def _root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def keep(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Perturbation: none."""
    return values


def round_once_more(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Perturbation: each value moved by up to half of the spacing that its dtype has there."""
    spacing = torch.finfo(dtype).eps * values.abs()
    uniform = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    return values + spacing * (uniform - 0.5)


def make_prompts(tokenizer: Any, vocab_size: int) -> Tensor:
    """int64 [B, T]: random tokens, some text that is cut or repeated to T tokens, and the newest
    tokens, among which the item tokens are."""
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for _ in range(NUM_RANDOM_PROMPTS):
        prompts.append(torch.randint(vocab_size, (PROMPT_TOKENS,), generator=generator))
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        repeated = ids.repeat(PROMPT_TOKENS // len(ids) + 1)
        prompts.append(repeated[:PROMPT_TOKENS])
    prompts.append(torch.arange(vocab_size - PROMPT_TOKENS, vocab_size).clamp(min=0))
    return torch.stack(prompts)


def empty_model(directory: Path) -> PreTrainedModel:
    """The model on the meta device, which takes no memory. Only buffers that no file holds (rotary
    frequencies) have values."""
    try:
        config = read_config(ModelSource(base=str(directory)))
    except ValueError as error:
        raise InputError(f"--verify: {directory}: {error}") from error
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    return model.eval()


def adapted_model(source: MergeSource, num_tokens: int) -> PeftModel:
    """The base, resized as training resizes it, with the adapter on it, both without values."""
    model = empty_model(source.base)
    # The adapter may have rows for new tokens, which the base's tables lack.
    if num_tokens > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    config = PeftConfig.from_pretrained(str(source.adapter), inference_mode=True)
    return PeftModel(model, config).eval()


def compute_logits(
    model: Any,
    tensors: Mapping[str, StoredTensor],
    input_ids_BT: Tensor,
    perturbation: Perturbation = keep,
) -> Tensor:
    """float32 [B, T, V] of an empty model, whose weights are read while it runs."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder: Any = base.get_decoder()
    # The parts that hold weights one at a time: embedding, each decoder layer, norm, head. The list
    # of layers is not called itself.
    parts = {*decoder.children(), *decoder.layers, base.get_output_embeddings()}
    parts.remove(decoder.layers)
    for name, module in base.named_modules():
        if module in parts:
            stream_weights(module, name, tensors, perturbation)
    return model(input_ids=input_ids_BT).logits


def stream_weights(
    module: nn.Module,
    name: str,
    tensors: Mapping[str, StoredTensor],
    perturbation: Perturbation,
) -> None:
    """From now on the module's weights are read before each call, and dropped after it."""
    # Parameters that are not on the meta device have values already.
    shapes = {}
    for own, parameter in module.named_parameters():
        if parameter.is_meta:
            shapes[own] = parameter.shape

    def read_all(*_: Any) -> None:
        for own, shape in shapes.items():
            value = read_parameter(tensors, f"{name}.{own}", shape, perturbation)
            set_module_tensor_to_device(module, own, "cpu", value=value)

    def drop_all(*_: Any) -> None:
        for own in shapes:
            set_module_tensor_to_device(module, own, "meta")

    module.register_forward_pre_hook(read_all)
    module.register_forward_hook(drop_all)


def read_parameter(
    tensors: Mapping[str, StoredTensor],
    parameter: str,
    shape: torch.Size,
    perturbation: Perturbation,
) -> Tensor:
    """The values of a parameter in float32.

    Rows that the file lacks are new tokens' rows. They are 0, because the adapter's token rows take
    their place. Raises InputError if no file has the parameter.
    """
    for name in possible_names(tensors, parameter, shape):
        if name in tensors:
            tensor = tensors[name]
            break
    else:
        raise InputError(
            f"{parameter}: neither in the base nor in the adapter, though peft expects it; the "
            "adapter is incomplete, copy or save it again"
        )
    values = perturbation(tensor.rows().float(), DTYPES[tensor.dtype])
    if values.shape != shape:
        missing = values.new_zeros(shape[0] - len(values), *shape[1:])
        values = torch.cat([values, missing])
    return values


def possible_names(
    tensors: Mapping[str, StoredTensor], parameter: str, shape: torch.Size
) -> Iterator[str]:
    """The names under which the files may hold a parameter, the most special one first."""
    yield from _file_names(parameter)
    # A tied head is in no file. It has the base's embedding; if the embedding was resized and saved
    # with the adapter, it has that one.
    embedding = ""
    for name in tensors:
        if name.endswith(EMBEDDING) and not name.startswith(PREFIX):
            embedding = name
            break
    if embedding and parameter.startswith("lm_head."):
        if tensors[embedding].shape == shape:
            yield embedding
        of_embedding = embedding.removesuffix(".weight") + parameter.removeprefix("lm_head")
        yield from _file_names(of_embedding)


def _file_names(parameter: str) -> Iterator[str]:
    """The names of a parameter in the adapter's file, then in the base's."""
    saved = PREFIX + ADAPTER_NAME.sub("", parameter)
    yield saved
    yield saved.replace(".modules_to_save.", ".")
    yield saved.replace("_vector.weight", "_vector")
    yield PEFT_PARTS.sub("", parameter)
