"""What the method costs a training step: sft, stage1, stage2 and a DPO step on the same batches and
the same model, as ratios to sft.

    # SmolLM2-135M's shape, LoRA, on two CPU cores: some minutes.
    python tools/benchmarks/benchmark_training.py
    # Llama-3-8B's shape, random weights, bfloat16, on a GPU.
    python tools/benchmarks/benchmark_training.py --size 8b --batch_size 8

A step is forward, backward and AdamW. Contestants take turns, so that what disturbs the machine
disturbs all alike; a ratio is the median over rounds of the contestant's seconds to sft's in the
same round. The objectives are those of the shipped recipes.

`dpo` is for orientation: one rejected response (Rafailov et al. 2023), twice the sequences, and
once more without gradients for the reference, which under LoRA is the model without its adapter
(and without LoRA a frozen copy). Its logits are made for the responses only, which is less than DPO
trainers usually do. All four make no logits for prompts.

Peak memory is all that torch's allocator held at once: weights, gradients, optimizer state,
activations. `operation` is the share of a step's time inside cross_layer_loss, whose forward makes
the gradients too. Writes training-<device>-<size>.json, .md and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from measure import peak_extra_bytes
from report_files import say
from training_contestants import (
    SIZES,
    losses_of,
    make_batch,
    make_model,
    negatives_per_token,
    reference_of,
)
from training_report import write_training_report

import ilrec.model.objective
from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.processes import device_name, environment, run_entry


class OperationClock:
    """Seconds spent inside the vocabulary operation."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.device = device

    def synchronize(self) -> None:
        """CUDA works in the background: what was begun must end before the time is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, every call of the operation is timed."""
        # The model's forward looks the operation up in its module, where it can be replaced.
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
    held = [*model.parameters(), *model.buffers(), *extra]
    for entry in optimizer.state.values():
        held += [value for value in entry.values() if isinstance(value, Tensor)]
    # Tied weights share one storage, which counts once.
    storages = {}
    for tensor in held:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure_case(
    arguments: argparse.Namespace, model: Any, num_supervised: int, device: torch.device
) -> dict[str, Any]:
    """All contestants on one batch. dpo's copy of the model counts as memory of dpo alone."""
    batch = make_batch(arguments, model, num_supervised, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    reference = reference_of(model)
    losses = losses_of(model, reference, batch)

    def step(name: str) -> None:
        losses[name]().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # Memory, and the warm-up: the optimizer's state exists after the first step.
    peaks: dict[str, int] = {}
    for name in losses:
        step(name)
        # Without an adapter the reference is a second model.
        copied = []
        if name == "dpo" and not isinstance(model, PeftModel):
            with reference() as frozen:
                copied = list(frozen.parameters())
        held = held_bytes(model, optimizer, copied)
        peaks[name] = held + peak_extra_bytes(partial(step, name), device)

    seconds, operation = take_turns(list(losses), step, arguments.rounds, num_supervised, device)
    # A ratio is taken within a round, where both ran under the same conditions.
    rows = []
    for name in losses:
        ratios = [mine / sft for mine, sft in zip(seconds[name], seconds["sft"], strict=True)]
        row = {
            "peak_bytes": peaks[name],
            "contestant": name,
            "seconds": sorted(seconds[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratios": sorted(ratios),
            "memory_ratio": peaks[name] / peaks["sft"],
            "tokens_per_second": batch["labels"].numel() / statistics.median(seconds[name]),
            "operation_share": operation[name] / sum(seconds[name]),
        }
        rows.append(row)
    return {
        "num_supervised": num_supervised,
        "negatives_per_token": negatives_per_token(model, batch),
        "rows": rows,
    }


def take_turns(
    names: list[str],
    step: Callable[[str], None],
    num_rounds: int,
    num_supervised: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """({contestant: seconds of each round}, {contestant: seconds inside the operation, in all})"""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    operation = dict.fromkeys(names, 0.0)
    clock = OperationClock(device)
    with clock.running():
        for turn in range(num_rounds):
            for name in names:
                # From zero for each step: the sum belongs to one contestant.
                clock.seconds = 0.0
                begun = time.perf_counter()
                step(name)
                clock.synchronize()
                seconds[name].append(time.perf_counter() - begun)
                operation[name] += clock.seconds
            times = ", ".join(f"{name} {of_name[-1]:.2f} s" for name, of_name in seconds.items())
            say(f"  {num_supervised} supervised, round {turn + 1}/{num_rounds}: {times}")
    return seconds, operation


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="135m")
    parser.add_argument("--adapter", choices=("lora", "none"), default="lora")
    parser.add_number("--tokens", int, at_least=2, default=256, help="of a sample")
    parser.add_number(
        "--supervised",
        int,
        at_least=1,
        nargs="+",
        default=[16, 240],
        help="of them, at the end: 16 is a title and its end token, 240 is supervision: every_item",
    )
    parser.add_number("--batch_size", int, at_least=1, default=4)
    parser.add_number("--rounds", int, at_least=1, default=7)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/benchmarks"),
        help="directory for .json, .md and .png",
    )
    arguments = parser.parse_args(argv)
    if max(arguments.supervised) >= arguments.tokens:
        raise InputError(
            f"--supervised: expected numbers from 1 to {arguments.tokens - 1} (--tokens - 1), "
            f"got {arguments.supervised}"
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
    # One model serves all: contestants differ in their loss alone.
    model = make_model(arguments, device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{num_parameters:,} parameters, {arguments.batch_size} samples of "
        f"{arguments.tokens} tokens"
    )
    cases = [measure_case(arguments, model, count, device) for count in arguments.supervised]
    report = {
        "environment": environment(argv) | {"device": device_name(device)},
        "settings": vars(arguments) | {"output": str(arguments.output)},
        "cases": cases,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
    }
    write_training_report(report, arguments.output)


if __name__ == "__main__":
    run_entry(main)
