"""NaN and inf: what is, where, in which samples, and what is kept of it to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, tensor

SAMPLE_IDS = "sample_ids"
NUM_NAMED = 8  # samples that a message names for each rank


class IdentifiedCollator:
    """Adds the samples' numbers, int64 [B], to a collated batch, so that a bad one can be named."""

    def __init__(self, collate: Callable[[Sequence[dict]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        return {
            **self.collate(samples),
            SAMPLE_IDS: tensor([sample["sample_id"] for sample in samples]),
        }


def describe_nonfinite(counts_WK2: list[list[int]]) -> str:
    """What is NaN or inf, on which rank, and the mend; the lowest layer first, because what goes
    wrong there goes on upwards."""
    num_readout_layers = len(counts_WK2[0]) - 2
    names = [
        "last layer's hidden states",
        *(f"readout layer L-{k}'s hidden states" for k in range(1, num_readout_layers + 1)),
    ]
    found = []
    for layer in range(num_readout_layers, -1, -1):
        tokens = {rank: counts[layer] for rank, counts in enumerate(counts_WK2) if counts[layer]}
        if tokens:
            found.append(
                f"{names[layer]} ({', '.join(f'rank {rank}: {count} tokens' for rank, count in tokens.items())})"
            )
    if found:
        return (
            f"NaN or inf in {'; '.join(found)}. Lower learning_rate or max_grad_norm, set dtype: bfloat16 if it is float16, "
            "and check that the model or checkpoint started from has none in its weights"
        )
    ranks = ", ".join(f"rank {rank}" for rank, counts in enumerate(counts_WK2) if counts[-1])
    return (
        f"the loss is NaN or inf ({ranks}) though the hidden states are finite. Check the LM head and the new tokens' rows "
        "of the model or checkpoint started from, lower learning_rate, and set dtype: bfloat16 if it is float16"
    )


def keep_batches(
    inputs: dict[str, Any],
    counts_WK2: list[list[int]],
    rank: int,
    step: int,
    output_dir: str | Path,
) -> str:
    """Each bad rank's micro-batch goes to OUTPUT_DIR/nonfinite/; all ranks call it. Returns the
    sentence that names the samples."""
    directory = Path(output_dir) / "nonfinite"
    if any(counts_WK2[rank]):
        directory.mkdir(parents=True, exist_ok=True)
        kept = {
            name: value.detach().cpu().contiguous()
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        save_file(kept, directory / f"step-{step}-rank-{rank}.safetensors")
    mine = inputs[SAMPLE_IDS].tolist() if SAMPLE_IDS in inputs else []
    ids_WB: list[list[int]] = [mine]
    if dist.is_initialized():
        ids_WB = [[]] * dist.get_world_size()
        dist.all_gather_object(ids_WB, mine)
    named = [
        f"rank {rank}: {_listed(ids)}" for rank, ids in enumerate(ids_WB) if any(counts_WK2[rank])
    ]
    return f"Samples of the micro-batch, kept in {directory}: {'; '.join(named)}"


def _listed(ids: list[int]) -> str:
    more = len(ids) - NUM_NAMED
    return ", ".join(map(str, ids[:NUM_NAMED])) + (f" and {more} more" if more > 0 else "")
