"""What the method costs a training step: sft, stage1, stage2 and a DPO step on the same batches and
the same model, as ratios to sft.

    python tools/benchmarks/benchmark_training.py                              # SmolLM2-135M's
    shape, LoRA, on two CPU cores: some minutes python tools/benchmarks/benchmark_training.py --size
        8b --batch_size 8     # Llama-3-8B's shape, random, bfloat16, on a GPU

A step is forward, backward and AdamW. Contestants take turns, so that what disturbs the machine
disturbs all alike; a ratio is the median over rounds of the contestant's seconds to sft's in the
same round. The objectives are those of the shipped recipes.

`dpo` is for orientation: one rejected response (Rafailov et al. 2023), twice the sequences, and
once more without gradients for the reference, which under LoRA is the model without its adapter
(and without LoRA a frozen copy). Its logits are made for the responses only, which is less than DPO
trainers usually do. All four leave the head's logits out of prompts.

Peak memory is all that torch's allocator held at once: weights, gradients, optimizer state,
activations. `operation` is the share of a step's time inside cross_layer_loss, whose forward makes
the gradients too. Writes training-<device>-<size>.json, .md and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark_report import say
from measure import peak_extra_bytes
from training_report import write_training_report

import ilrec.model.objective
from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import load_config
from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.model.adapters import add_adapter
from ilrec.model.loading import choose_dtype
from ilrec.model.objective import attach_objective
from ilrec.ops import STATS
from ilrec.processes import device_name, environment, run_entry
from ilrec.samples.builder import IGNORE_INDEX

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
# The place of a label in the model's own order of tokens: about so many negatives stand before it.
LABEL_RANK = 20
LOGIT_STD = 3.0
# DPO's usual temperature; it does not change the cost.
DPO_BETA = 0.1


def make_model(arguments: argparse.Namespace, device: torch.device) -> Any:
    """A random model with the recipes' adapter and sft's objective, ready to train."""
    torch.manual_seed(0)
    dtype = choose_dtype("auto") if device.type == "cuda" else torch.float32
    with torch.device(device):
        config: Any = LlamaConfig(**SIZES[arguments.size], attn_implementation="sdpa")  # type: ignore[call-arg]
        base: Any = LlamaForCausalLM(config)
        base.to(dtype)
    # Logits as far apart as a trained model's; as initialised, all tokens are about equally likely.
    with torch.no_grad():
        base.model.norm.weight.fill_(
            LOGIT_STD / (base.config.initializer_range * base.config.hidden_size**0.5)
        )
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
    return load_config(
        ROOT / "ilrec" / "recipes" / f"{stage}.yaml", {"model": "any", "data": "any"}
    ).objective


@torch.no_grad()
def make_batch(
    arguments: argparse.Namespace, model: Any, num_supervised: int, device: torch.device
) -> dict[str, Tensor]:
    """Random tokens; the last `num_supervised` places of each sample are its response, with labels
    that the model finds likely.

    For random labels a random model proposes half the vocabulary as negatives; a trained one
    proposes some tens.
    """
    shape = (arguments.batch_size, arguments.tokens)
    input_ids = torch.randint(
        SIZES[arguments.size]["vocab_size"], shape, generator=torch.Generator().manual_seed(1)
    ).to(device)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    logits_BRV = model(input_ids=input_ids, logits_to_keep=num_supervised + 1).logits[:, :-1]
    labels[:, -num_supervised:] = logits_BRV.topk(LABEL_RANK).indices[..., -1]
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


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
    return float(stats_5[STATS.index("num_negatives")]) / int(
        (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    )


def dpo_loss(
    model: Any,
    reference: Callable[[], contextlib.AbstractContextManager[Any]],
    batch: dict[str, Tensor],
) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), each log p - log p^ref; rejected responses are the
    batch's, one place on."""
    batch = dict(batch)
    rejected = {name: value.clone() for name, value in batch.items()}
    supervised_BT = batch["labels"] != IGNORE_INDEX
    rejected["labels"][supervised_BT] = batch["labels"].roll(1, 0)[supervised_BT]
    for one in (batch, rejected):
        one["input_ids"] = torch.where(supervised_BT, one["labels"], one["input_ids"])
    both = {name: torch.cat([batch[name], rejected[name]]) for name in batch}
    with torch.no_grad(), reference() as frozen:
        reference_G = response_logps(frozen, both)
    chosen_B, rejected_B = (response_logps(model, both) - reference_G).chunk(2)
    return dpo_of(chosen_B - rejected_B)


def dpo_of(margins_B: Tensor) -> Tensor:
    return -F.logsigmoid(DPO_BETA * margins_B).mean()


def response_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """log p of each response, logits made for supervised tokens only: float32 [G]."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden_GTH = base.get_decoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )[0]
    supervised_GT = batch["labels"][:, 1:] != IGNORE_INDEX
    logits_NV = base.get_output_embeddings()(hidden_GTH[:, :-1][supervised_GT]).float()
    logps_N = -F.cross_entropy(logits_NV, batch["labels"][:, 1:][supervised_GT], reduction="none")
    return torch.zeros(len(supervised_GT), device=logps_N.device).index_add(
        0, supervised_GT.nonzero()[:, 0], logps_N
    )


def reference_of(model: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """The frozen reference policy: the model without its adapter, or a copy."""
    if isinstance(model, PeftModel):

        @contextlib.contextmanager
        def without_adapter() -> Iterator[Any]:
            with model.disable_adapter():
                yield model

        return without_adapter
    frozen = copy.deepcopy(model).requires_grad_(False)
    return lambda: contextlib.nullcontext(frozen)


class OperationClock:
    """Seconds spent inside the vocabulary operation."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.synchronize = (
            0.0,
            torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        operation = ilrec.model.objective.cross_layer_loss

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.synchronize()
            begun = time.perf_counter()
            result = operation(*args, **kwargs)
            self.synchronize()
            self.seconds += time.perf_counter() - begun
            return result

        ilrec.model.objective.cross_layer_loss = timed  # type: ignore[assignment]
        try:
            yield
        finally:
            ilrec.model.objective.cross_layer_loss = operation


def held_bytes(model: Any, optimizer: torch.optim.Optimizer, extra: list[Tensor]) -> int:
    """Weights, optimizer state and whatever else stays between steps (CUDA's allocator counts by
    itself)."""
    state = [
        value
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    held = (*model.parameters(), *model.buffers(), *state, *extra)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held
    }
    return sum(storages.values())


def measure_case(
    arguments: argparse.Namespace, model: Any, num_supervised: int, device: torch.device
) -> dict[str, Any]:
    """All contestants on one batch, in turns; with dpo's reference copy in memory only while dpo is
    measured for memory."""
    batch = make_batch(arguments, model, num_supervised, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    reference = reference_of(model)
    losses: dict[str, Callable[[], Tensor]] = {
        stage: partial(stage_loss, model, stage, batch) for stage in STAGES
    }
    losses["dpo"] = partial(dpo_loss, model, reference, batch)

    def step(name: str) -> None:
        losses[name]().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    clock = OperationClock(device)
    rows: dict[str, dict[str, Any]] = {}
    for name in losses:  # the warm-up too: optimizer state exists after the first
        step(name)
        copied = (
            []
            if isinstance(model, PeftModel) or name != "dpo"
            else list(reference().__enter__().parameters())
        )
        rows[name] = {
            "peak_bytes": held_bytes(model, optimizer, copied)
            + peak_extra_bytes(partial(step, name), device)
        }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    operation = dict.fromkeys(losses, 0.0)
    with clock.running():
        for turn in range(arguments.rounds):
            for name in losses:
                clock.seconds, begun = 0.0, time.perf_counter()
                step(name)
                clock.synchronize()
                seconds[name].append(time.perf_counter() - begun)
                operation[name] += clock.seconds
            say(
                f"  {num_supervised} supervised, round {turn + 1}/{arguments.rounds}: "
                + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
            )
    for name, row in rows.items():
        ratios = [mine / sft for mine, sft in zip(seconds[name], seconds["sft"], strict=True)]
        row |= {
            "contestant": name,
            "seconds": sorted(seconds[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratios": sorted(ratios),
            "memory_ratio": row["peak_bytes"] / rows["sft"]["peak_bytes"],
            "tokens_per_second": batch["labels"].numel() / statistics.median(seconds[name]),
            "operation_share": operation[name] / sum(seconds[name]),
        }
    return {
        "num_supervised": num_supervised,
        "negatives_per_token": negatives_per_token(model, batch),
        "rows": list(rows.values()),
    }


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--adapter", choices=("lora", "none"), default="lora")
    parser.add_argument("--tokens", type=int, default=256, help="of a sample")
    parser.add_argument(
        "--supervised",
        type=int,
        nargs="+",
        default=[16, 240],
        help="of them, at the end: 16 is a title and its end token, 240 is supervision: every_item",
    )
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/benchmarks"),
        help="directory for .json, .md and .png",
    )
    arguments = parser.parse_args(argv)
    for name in ("tokens", "batch_size", "rounds"):
        if getattr(arguments, name) < 1:
            raise InputError(
                f"--{name}: expected a positive number, got {getattr(arguments, name)}"
            )
    if not all(0 < count < arguments.tokens for count in arguments.supervised):
        raise InputError(
            f"--supervised: expected numbers from 1 to {arguments.tokens - 1} (--tokens - 1), got {arguments.supervised}"
        )
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.size == "8b" and device.type == "cpu":
        raise InputError(
            "--size 8b: needs a CUDA device with 40 GiB or more; on a CPU take --size 135m"
        )
    check_directory(arguments.output)
    model = make_model(arguments, device)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {arguments.batch_size} samples of {arguments.tokens} tokens"
    )
    cases = [measure_case(arguments, model, count, device) for count in arguments.supervised]
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
    }
    report = {
        "environment": environment(argv) | {"device": device_name(device)},
        "settings": settings,
        "cases": cases,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
    }
    write_training_report(report, arguments.output)


if __name__ == "__main__":
    run_entry(main)
