"""One sample per user instead of one per prefix: each item after the first is a target, and sees
the items before it.

So a user's history is encoded once, and not once for each of its prefixes. A sequence that is too
long for one sample is cut into windows that overlap by half. Each item is a target once, with up to
max_history_items before it. From the second window on, half a window of items comes before the
first target, or fewer if longer items would not fit. What a target sees is token for token what
ranking would show for the same history (`SampleBuilder.prompt_ids`).

The token budget of a window: SampleBuilder.tokens_before counts for each item its tokens and the
separator after it. Every item of a window is followed by the separator except the last, which is
followed by the end token alone, if there is one. So a window has

    len(prefix) + sum(item and separator) - len(separator) + len(end)

tokens. For `< "a", "bb", "c"` with one token per character, no end token and the separator `,`
these are 1 + (5 + 6 + 5) - 1 + 0 = 16.

Shapes: E interactions in the flat array of all users, A users whose sequence is not yet cut to its
    end, W windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prefixes import require_targets


class TrainingWindows(Dataset):
    """`supervision: every_item`: each item of a training sequence but the first is a target
    once."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences = dataset.training_sequences()
        self.builder = builder
        self.before_E1 = builder.tokens_before(self.sequences.values)
        # What a window has beyond its items with their separators (see above).
        self.num_fixed = len(builder.prefix) - len(builder.separator) + len(builder.end)
        self.windows_W4 = cut_windows(
            self.sequences,
            self.before_E1,
            max_items=builder.max_history_items + 1,
            max_tokens=builder.max_length - self.num_fixed,
        )
        require_targets(dataset, len(self.windows_W4))

    def __len__(self) -> int:
        return len(self.windows_W4)

    def __getitem__(self, index: int) -> dict[str, Any]:
        user, begin, first, end = self.windows_W4[index].tolist()
        sample = self.builder.window(self.sequences[user], begin, first, end)
        return sample | {"sample_id": index, "user": user}

    def num_tokens(self) -> np.ndarray:
        """int32 [W]: the length of each window in tokens, without rendering any."""
        user_W, begin_W, _, end_W = self.windows_W4.T
        start_W = self.sequences.starts[user_W]
        items_W = self.before_E1[start_W + end_W] - self.before_E1[start_W + begin_W]
        return (self.num_fixed + items_W).astype(np.int32)


def cut_windows(
    sequences: Ragged, before_E1: np.ndarray, max_items: int, max_tokens: int
) -> np.ndarray:
    """int32 [W, 4]: the user of each window, and its begin, first target and end, as places within
    the user's sequence. By user, and for each user the oldest first.

    before_E1: tokens before each place of sequences.values, separators included. max_tokens: of the
    items of a window with their separators. By hand, 7 items of 1 token and windows of 4 items: the
    targets are 1-3 in the window of items 0-3, then 4-5 in 2-5, then 6 in 4-6.
    """
    # All users' first windows are cut at once, then all second windows, and so on. begin_A and
    # first_A are places in the flat array.
    user_A = np.flatnonzero(sequences.lengths > 1)
    begin_A = sequences.starts[user_A]
    first_A = begin_A + 1
    rounds = [np.empty((0, 4), dtype=np.int32)]
    while len(user_A):
        start_A, stop_A = sequences.starts[user_A], sequences.ends[user_A]

        # The window begins late enough for its first target to fit. Long items may need that; the
        # target always fits beside the one item before it.
        earliest_A = np.searchsorted(before_E1, before_E1[first_A + 1] - max_tokens)
        begin_A = np.maximum(begin_A, earliest_A)

        # The window ends where its tokens, its number of items, or the sequence end.
        fitting_A = np.searchsorted(before_E1, before_E1[begin_A] + max_tokens, side="right") - 1
        end_A = np.minimum.reduce([begin_A + max_items, fitting_A, stop_A])
        windows_A4 = np.stack([user_A, begin_A - start_A, first_A - start_A, end_A - start_A], 1)
        rounds.append(windows_A4.astype(np.int32))

        # The next window of the same user has half of this one as context, one item at least.
        num_context_A = np.maximum(1, (end_A - begin_A) // 2)
        begin_A = np.maximum(begin_A + 1, end_A - num_context_A)
        first_A = end_A
        goes_on_A = first_A < stop_A
        user_A = user_A[goes_on_A]
        begin_A = begin_A[goes_on_A]
        first_A = first_A[goes_on_A]

    windows_W4 = np.concatenate(rounds)
    return windows_W4[np.argsort(windows_W4[:, 0], kind="stable")]
