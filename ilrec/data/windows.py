"""One sequence per user instead of one sample per prefix: every item after the first is a target, and sees those before it.

The history of a user is encoded once, not once for each of its prefixes. A sequence too long for a sample is cut into windows that
overlap by half: an item is a target once, with up to max_history_items before it, and at least half a window of them.
What a target sees is token for token what ranking would show for the same history (`SampleBuilder.prompt_ids`).

Shapes: I items of the catalogue, T items of one user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ilrec.data.interactions import InteractionDataset
from ilrec.data.samples import SampleBuilder, require_targets


class TrainingWindows(Dataset):
    """`supervision: every_item`: each item of a training sequence but the first is a target once."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences, self.builder = dataset.training_sequences(), builder
        num_tokens_I = np.array([len(ids) + len(builder.suffix) for ids in builder.item_ids])
        rows = [(user, *window) for user, sequence in enumerate(self.sequences)
                for window in cut_windows(num_tokens_I[sequence], builder.max_history_items + 1, builder.num_window_tokens)]
        require_targets(dataset, len(rows))
        self.windows = np.array(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        user, begin, first, end = self.windows[index].tolist()
        return self.builder.window(self.sequences[user], begin, first, end)


def cut_windows(num_tokens_T: np.ndarray, max_items: int, max_tokens: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first target, end) of each window over a sequence of items of so many tokens.

    By hand, 7 items of 1 token, windows of 4: targets 1-3 in items 0-3, 4-5 in 2-5, and 6 in 4-6.
    """
    after_T1 = np.concatenate([[0], np.cumsum(num_tokens_T)])
    begin, first = 0, 1
    while first < len(num_tokens_T):
        while after_T1[first + 1] - after_T1[begin] > max_tokens:  # at least the new target fits, beside its predecessor
            begin += 1
        fitting = int(np.searchsorted(after_T1, after_T1[begin] + max_tokens, side="right")) - 1
        end = min(begin + max_items, fitting, len(num_tokens_T))
        yield begin, first, end
        begin, first = max(begin + 1, end - max(1, (end - begin) // 2)), end
