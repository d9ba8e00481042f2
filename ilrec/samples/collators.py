"""Samples -> tensors: padded on the right to train, flattened into one row to train without
padding, prompts to rank.

Shapes: B batch, T sequence (padded).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from ilrec.samples.prefixes import IGNORE_INDEX


class TrainingCollator:
    """Samples -> int64 tensors, padded on the right, where causal attention never looks back from a
    real token.

    input_ids, attention_mask, labels [B, T].
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids = [sample["input_ids"] for sample in samples]
        return {
            "input_ids": _padded(input_ids, self.pad_token_id, left=False),
            "attention_mask": _padded(([1] * len(ids) for ids in input_ids), 0, left=False),
            "labels": _padded((sample["labels"] for sample in samples), IGNORE_INDEX, left=False),
        }


def flattening_collator(boundaries: bool) -> DataCollatorWithFlattening:
    """Samples -> one row [1, T] without padding: input_ids, labels, position_ids from 0 in each
    sample, no attention_mask.

    boundaries: also where each sample begins and ends, for flash_attention_2, which otherwise
        searches position_ids for it.
    """
    return DataCollatorWithFlattening(
        return_tensors="pt", separator_id=IGNORE_INDEX, return_flash_attn_kwargs=boundaries
    )


class PromptCollator:
    """Evaluation samples -> prompts without their responses, int64, padded on the left, so that all
    end together.

    input_ids, attention_mask [B, T]; target_item [B].
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        prompts = [
            sample["input_ids"][: sample["labels"].count(IGNORE_INDEX)] for sample in samples
        ]
        return {
            "input_ids": _padded(prompts, self.pad_token_id, left=True),
            "attention_mask": _padded(([1] * len(ids) for ids in prompts), 0, left=True),
            "target_item": torch.tensor([sample["items"][-1] for sample in samples]),
        }


def _padded(rows: Iterable[Sequence[int] | np.ndarray], value: int, left: bool) -> Tensor:
    rows = list(rows)
    width = max(len(row) for row in rows)
    padded_BT = np.full((len(rows), width), value, dtype=np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        padded_T[width - len(row) if left else 0 : width if left else len(row)] = row
    return torch.from_numpy(padded_BT)
