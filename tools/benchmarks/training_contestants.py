"""The contestants of tools/benchmarks/benchmark_training.py: a random model, a batch for it, and
the loss of each.

    from training_contestants import losses_of, make_batch, make_model      # not a program

Shapes: B samples, R supervised places and the one before them, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec.config.loading import load_config
from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.model.adapters import add_adapter
from ilrec.model.dpo import response_logps, sdpo_loss
from ilrec.model.loading import choose_dtype
from ilrec.model.objective import attach_objective
from ilrec.ops import IGNORE_INDEX, STATS

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("sft", "stage1", "stage2")
# Shapes of the published models: HuggingFaceTB/SmolLM2-135M, meta-llama/Meta-Llama-3-8B; tiny is
# for tests.
SIZES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 300,
    },
}
# A label's place in the model's own order of tokens: about so many negatives stand before it.
LABEL_RANK = 20
# The standard deviation of the logits.
LOGIT_STD = 3.0
# DPO's usual temperature. It does not change the cost.
DPO_BETA = 0.1

# Gives the frozen reference policy of DPO, for as long as the context lasts.
Reference = Callable[[], contextlib.AbstractContextManager[Any]]


def make_model(arguments: argparse.Namespace, device: torch.device) -> Any:
    """A random model with the recipes' adapter and sft's objective, ready to train."""
    torch.manual_seed(0)
    dtype = choose_dtype("auto") if device.type == "cuda" else torch.float32
    with torch.device(device):
        sizes: Any = SIZES[arguments.size]
        config: Any = LlamaConfig(**sizes, attn_implementation="sdpa")  # type: ignore[call-arg]
        base: Any = LlamaForCausalLM(config)
        base.to(dtype)
    # Logits as far apart as a trained model's. As initialised, all tokens are about equally likely.
    logit_std = base.config.initializer_range * base.config.hidden_size**0.5
    with torch.no_grad():
        base.model.norm.weight.fill_(LOGIT_STD / logit_std)
    model: Any = base
    if arguments.adapter == "lora":
        model = add_adapter(base, ModelConfig(), [])
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    attach_objective(model, objective_of("sft"), [])
    return model.train()


def objective_of(stage: str) -> ObjectiveConfig:
    """The shipped recipe's."""
    recipe = ROOT / "ilrec" / "recipes" / f"{stage}.yaml"
    return load_config(recipe, {"model": "any", "data": "any"}).objective


@torch.no_grad()
def make_batch(
    arguments: argparse.Namespace, model: Any, num_supervised: int, device: torch.device
) -> dict[str, Tensor]:
    """Random tokens. The last `num_supervised` places of each sample are its response, with labels
    that the model finds likely: for random labels a random model would have half the vocabulary as
    negatives, where a trained model has some tens.
    """
    shape = (arguments.batch_size, arguments.tokens)
    vocab_size = SIZES[arguments.size]["vocab_size"]
    # Drawn on the CPU: the same tokens on every device.
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(vocab_size, shape, generator=generator).to(device)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    logits_BRV = model(input_ids=input_ids, logits_to_keep=num_supervised + 1).logits[:, :-1]
    labels[:, -num_supervised:] = logits_BRV.topk(LABEL_RANK).indices[..., -1]
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


def losses_of(
    model: Any, reference: Reference, batch: dict[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """{contestant: its loss on the batch}"""
    losses: dict[str, Callable[[], Tensor]] = {}
    for stage in STAGES:
        losses[stage] = partial(stage_loss, model, stage, batch)
    losses["dpo"] = partial(dpo_loss, model, reference, batch)
    return losses


def stage_output(model: Any, stage: str, batch: dict[str, Tensor]) -> Any:
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.prepare_objective(objective_of(stage), [])
    return model(**batch)


def stage_loss(model: Any, stage: str, batch: dict[str, Tensor]) -> Tensor:
    return stage_output(model, stage, batch).loss


def negatives_per_token(model: Any, batch: dict[str, Tensor]) -> float:
    """Hard negatives as stage2 finds them."""
    with torch.no_grad():
        stats_5 = stage_output(model, "stage2", batch).stats_5
    num_labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    return float(stats_5[STATS.index("num_negatives")]) / num_labels


def dpo_loss(model: Any, reference: Reference, batch: dict[str, Tensor]) -> Tensor:
    """DPO, where a sample's rejected response is the one of the sample before it in the batch."""
    supervised_BT = batch["labels"] != IGNORE_INDEX
    chosen = dict(batch)
    rejected = {name: value.clone() for name, value in batch.items()}
    rejected["labels"][supervised_BT] = batch["labels"].roll(1, 0)[supervised_BT]
    # The responses are read, too: labels take the place of the random tokens there.
    for half in (chosen, rejected):
        half["input_ids"] = torch.where(supervised_BT, half["labels"], half["input_ids"])
    both = {name: torch.cat([chosen[name], rejected[name]]) for name in batch}
    with torch.no_grad(), reference() as frozen:
        reference_G = response_logps(frozen, both)
    chosen_B, rejected_B = (response_logps(model, both) - reference_G).chunk(2)
    return sdpo_loss(torch.stack([chosen_B, rejected_B], 1), DPO_BETA)


def reference_of(model: Any) -> Reference:
    """The frozen reference policy: the model without its adapter, or a copy of the model."""
    if isinstance(model, PeftModel):

        @contextlib.contextmanager
        def without_adapter() -> Iterator[Any]:
            with model.disable_adapter():
                yield model

        return without_adapter
    frozen = copy.deepcopy(model).requires_grad_(False)
    return lambda: contextlib.nullcontext(frozen)
