"""The message about NaN and inf, and what is kept of the micro-batch."""

import torch
from safetensors.torch import load_file

from ilrec.training.nonfinite import IdentifiedCollator, describe_nonfinite, keep_batches


def test_ranks_are_told_apart():
    """Four ranks, K = 2: L-2 and L-1 on rank 3, the last layer on ranks 1 and 3, the loss on those
    and on rank 2."""
    text = describe_nonfinite([[0, 0, 0, 0], [5, 0, 0, 1], [0, 0, 0, 1], [7, 7, 6, 1]])
    assert text.startswith(
        "NaN or inf in readout layer L-2's hidden states (rank 3: 6 tokens); readout layer L-1's "
        "hidden states (rank 3: 7 tokens); last layer's hidden states (rank 1: 5 tokens, rank 3: "
        "7 tokens). "
    )
    text = describe_nonfinite([[0, 1], [0, 0], [0, 1]])
    assert text.startswith("the loss is NaN or inf (rank 0, rank 2) though")


def test_a_bad_micro_batch_is_named_and_kept(tmp_path):
    def collate(rows: list[dict]) -> dict:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    samples = [{"input_ids": [1, 2], "sample_id": 40 + i} for i in range(10)]
    batch = IdentifiedCollator(collate)(samples)
    place = tmp_path / "nonfinite"
    assert keep_batches(batch, [[0, 3, 1]], 0, 7, tmp_path) == (
        f"Samples of the micro-batch, kept in {place}: "
        "rank 0: 40, 41, 42, 43, 44, 45, 46, 47 and 2 more"
    )
    kept = load_file(place / "step-7-rank-0.safetensors")
    assert torch.equal(kept["input_ids"], batch["input_ids"])
    assert kept["sample_ids"].tolist() == list(range(40, 50))
