"""Samples -> tensors: padded on the right to train, flattened into one row to train without
padding, and prompts padded on the left to rank.

Shapes: B batch, T sequence (padded).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from ilrec.samples.builder import IGNORE_INDEX


class TrainingCollator:
    """Samples -> input_ids, attention_mask and labels, int64 [B, T], padded on the right.

    With causal attention no real token looks at the padding after it.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids = [sample["input_ids"] for sample in samples]
        labels = [sample["labels"] for sample in samples]
        return {
            "input_ids": _padded(input_ids, self.pad_token_id, left=False),
            "attention_mask": _padded(_ones(input_ids), 0, left=False),
            "labels": _padded(labels, IGNORE_INDEX, left=False),
        }


def flattening_collator(boundaries: bool) -> DataCollatorWithFlattening:
    """Samples -> one row [1, T] without padding: input_ids, labels, and position_ids that begin
    anew at 0 in each sample. There is no attention_mask.

    boundaries: also return where each sample begins and ends. flash_attention_2 reads that;
        without it, it searches position_ids for the places.
    """
    return DataCollatorWithFlattening(
        return_tensors="pt", separator_id=IGNORE_INDEX, return_flash_attn_kwargs=boundaries
    )


class PromptCollator:
    """Evaluation samples -> prompts without their responses: input_ids and attention_mask, int64
    [B, T], and target_item [B].

    They are padded on the left, so that all of them end, and beam search begins, in one column.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        prompts = []
        for sample in samples:
            num_prompt_tokens = sample["labels"].count(IGNORE_INDEX)
            prompts.append(sample["input_ids"][:num_prompt_tokens])
        targets = torch.tensor([sample["items"][-1] for sample in samples])
        return {**padded_prompts(prompts, self.pad_token_id), "target_item": targets}


def padded_prompts(prompts: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, int64 [B, T], padded on the left."""
    return {
        "input_ids": _padded(prompts, pad_token_id, left=True),
        "attention_mask": _padded(_ones(prompts), 0, left=True),
    }


def _ones(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The attention mask of real tokens."""
    return [[1] * len(row) for row in rows]


def _padded(rows: Iterable[Sequence[int] | np.ndarray], value: int, left: bool) -> Tensor:
    """int64 [B, longest row], with `value` before (left) or after each row."""
    rows = list(rows)
    width = max(len(row) for row in rows)
    padded_BT = np.full((len(rows), width), value, dtype=np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        begin = width - len(row) if left else 0
        padded_T[begin : begin + len(row)] = row
    return torch.from_numpy(padded_BT)
