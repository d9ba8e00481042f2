"""NaN and inf: the message that tells where they are and in which samples, and the batch that is
kept for a closer look.

Shapes: W ranks, K readout layers, B samples. A rank's counts are K + 2 numbers: the tokens with NaN
or inf in the last layer's hidden states, the same for the readout layers L-1 to L-K, and 1 if the
loss is NaN or inf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, tensor

SAMPLE_IDS = "sample_ids"
# A message names this many samples of each rank.
NUM_NAMED = 8


class IdentifiedCollator:
    """Adds the samples' numbers, int64 [B], to a collated batch, so that a bad one can be named."""

    def __init__(self, collate: Callable[[Sequence[dict]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        batch = self.collate(samples)
        sample_ids = tensor([sample["sample_id"] for sample in samples])
        return {**batch, SAMPLE_IDS: sample_ids}


def describe_nonfinite(counts_WK2: list[list[int]]) -> str:
    """What is NaN or inf, on which ranks, and how to mend it.

    The lowest layer comes first, because what goes wrong there continues in all layers above it.
    """
    num_readout_layers = len(counts_WK2[0]) - 2
    names = ["last layer's hidden states"]
    for k in range(1, num_readout_layers + 1):
        names.append(f"readout layer L-{k}'s hidden states")

    found = []
    for layer in range(num_readout_layers, -1, -1):
        ranks = [
            f"rank {rank}: {counts[layer]} tokens"
            for rank, counts in enumerate(counts_WK2)
            if counts[layer]
        ]
        if ranks:
            found.append(f"{names[layer]} ({', '.join(ranks)})")
    if found:
        return (
            f"NaN or inf in {'; '.join(found)}. Lower learning_rate or max_grad_norm, set dtype: "
            "bfloat16 if it is float16, and check that the model or checkpoint started from has "
            "none in its weights"
        )

    # All states are finite, so the fault lies in what turns them into the loss.
    ranks = [f"rank {rank}" for rank, counts in enumerate(counts_WK2) if counts[-1]]
    return (
        f"the loss is NaN or inf ({', '.join(ranks)}) though the hidden states are finite. Check "
        "the LM head and the new tokens' rows of the model or checkpoint started from, lower "
        "learning_rate, and set dtype: bfloat16 if it is float16"
    )


def keep_batches(
    inputs: dict[str, Any],
    counts_WK2: list[list[int]],
    rank: int,
    step: int,
    output_dir: str | Path,
) -> str:
    """Save the micro-batch of each bad rank under OUTPUT_DIR/nonfinite/. All ranks call it.

    Returns the sentence that names the samples.
    """
    directory = Path(output_dir) / "nonfinite"
    if any(counts_WK2[rank]):
        directory.mkdir(parents=True, exist_ok=True)
        kept = {}
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                kept[name] = value.detach().cpu().contiguous()
        save_file(kept, directory / f"step-{step}-rank-{rank}.safetensors")

    # Every rank raises the same message, so each must know the samples of all.
    mine = inputs[SAMPLE_IDS].tolist() if SAMPLE_IDS in inputs else []
    ids_WB: list[list[int]] = [mine]
    if dist.is_initialized():
        ids_WB = [[]] * dist.get_world_size()
        dist.all_gather_object(ids_WB, mine)
    named = []
    for number, ids in enumerate(ids_WB):
        if any(counts_WK2[number]):
            named.append(f"rank {number}: {_listed(ids)}")
    return f"Samples of the micro-batch, kept in {directory}: {'; '.join(named)}"


def _listed(ids: list[int]) -> str:
    text = ", ".join(map(str, ids[:NUM_NAMED]))
    more = len(ids) - NUM_NAMED
    return f"{text} and {more} more" if more > 0 else text
