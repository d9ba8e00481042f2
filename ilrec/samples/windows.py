"""One sequence per user instead of one sample per prefix: every item after the first is a target,
and sees those before it.

The history of a user is encoded once, not once for each of its prefixes. A sequence too long for a
sample is cut into windows that
overlap by half: an item is a target once, with up to max_history_items before it, and at least half
a window of them. What a target sees is token for token what ranking would show for the same history
(`SampleBuilder.prompt_ids`).

Shapes: E interactions in the flat array of all users, U users, A users whose sequence is not yet
    cut to its end, W windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.prefixes import SampleBuilder, require_targets


class TrainingWindows(Dataset):
    """`supervision: every_item`: each item of a training sequence but the first is a target
    once."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences, self.builder = dataset.training_sequences(), builder
        self.before_E1 = builder.tokens_before(self.sequences.values)
        self.windows_W4 = cut_windows(
            self.sequences, self.before_E1, builder.max_history_items + 1, builder.num_window_tokens
        )
        require_targets(dataset, len(self.windows_W4))

    def __len__(self) -> int:
        return len(self.windows_W4)

    def __getitem__(self, index: int) -> dict[str, Any]:
        user, begin, first, end = self.windows_W4[index].tolist()
        return self.builder.window(self.sequences[user], begin, first, end) | {"sample_id": index}

    def num_tokens(self) -> np.ndarray:
        """int32 [W]: how long each window is, without rendering any."""
        user_W, begin_W, _, end_W = self.windows_W4.T
        start_W = self.sequences.starts[user_W]
        items_W = self.before_E1[start_W + end_W] - self.before_E1[start_W + begin_W]
        builder = self.builder
        return (len(builder.prefix) + items_W - len(builder.separator) + len(builder.end)).astype(
            np.int32
        )


def cut_windows(
    sequences: Ragged, before_E1: np.ndarray, max_items: int, max_tokens: int
) -> np.ndarray:
    """int32 [W, 4]: user, begin, first target and end of each window, places within the user's
    sequence; by user, oldest first.

    before_E1: tokens before each place of sequences.values. By hand, 7 items of 1 token, windows of
    4: targets 1-3 in items 0-3, 4-5 in 2-5, and 6 in 4-6. All users' first windows are cut at once,
        then all second ones, ...
    """
    user_A = np.flatnonzero(sequences.lengths > 1)
    begin_A, first_A = sequences.starts[user_A], sequences.starts[user_A] + 1
    rounds = [np.empty((0, 4), dtype=np.int32)]
    while len(user_A):
        start_A, stop_A = sequences.starts[user_A], sequences.ends[user_A]
        # At least the new target fits, beside its predecessor.
        begin_A = np.maximum(
            begin_A, np.searchsorted(before_E1, before_E1[first_A + 1] - max_tokens)
        )
        fitting_A = np.searchsorted(before_E1, before_E1[begin_A] + max_tokens, side="right") - 1
        end_A = np.minimum.reduce([begin_A + max_items, fitting_A, stop_A])
        rounds.append(
            np.stack(
                [user_A, begin_A - start_A, first_A - start_A, end_A - start_A], axis=1
            ).astype(np.int32)
        )
        begin_A, first_A = (
            np.maximum(begin_A + 1, end_A - np.maximum(1, (end_A - begin_A) // 2)),
            end_A,
        )
        goes_on_A = first_A < stop_A
        user_A, begin_A, first_A = user_A[goes_on_A], begin_A[goes_on_A], first_A[goes_on_A]
    windows_W4 = np.concatenate(rounds)
    return windows_W4[np.argsort(windows_W4[:, 0], kind="stable")]
