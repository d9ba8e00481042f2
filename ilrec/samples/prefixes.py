"""One sample per prefix of a history, for training (`supervision: last_item`) and for ranking.

The training sequence 3, 7, 5 gives the samples 3 -> 7 and 3, 7 -> 5. No sample is stored: which one
has which number is arithmetic on the lengths of the sequences, and a sample is rendered when it is
asked for.

Shapes: E interactions in the flat array of all users, U users of one block, S samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.dataset import InteractionDataset
from ilrec.samples.builder import SampleBuilder

# Lengths are computed for this many users at once, so that the memory for it does not grow with the
# data.
USERS_AT_ONCE = 50_000


def require_targets(dataset: InteractionDataset, num_samples: int) -> None:
    """Raises InputError if there is no sample to train on."""
    if num_samples == 0:
        raise InputError(
            f"{dataset.name}: nothing to train on: of every user's items at most one is not held "
            "out; expected some users with more items, a lower num_targets or a later split_time"
        )


class TrainingSamples(Dataset):
    """`supervision: last_item`: one sample for each item of a training sequence but the first."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences = dataset.training_sequences()
        self.builder = builder
        # User u has the samples from ends[u - 1] to ends[u] - 1.
        self.ends = np.cumsum(np.maximum(self.sequences.lengths - 1, 0))
        require_targets(dataset, int(self.ends[-1]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        user = int(np.searchsorted(self.ends, index, side="right"))
        sequence = self.sequences[user]
        # The user's last sample has the last item as its target, and so on backwards.
        place = len(sequence) - int(self.ends[user] - index)
        sample = self.builder.sample(sequence[:place], int(sequence[place]))
        return sample | {"sample_id": index, "user": user}

    def num_tokens(self) -> np.ndarray:
        """int32 [S]: the length of each sample in tokens, without rendering any."""
        builder = self.builder
        values = self.sequences.values
        before_E1 = builder.tokens_before(values)
        parts = []
        for first in range(0, len(self.sequences), USERS_AT_ONCE):
            users = self.sequences[first : first + USERS_AT_ONCE]

            # The place of each sample's target in the flat array, and where its user begins.
            counts_U = np.maximum(users.lengths - 1, 0)
            start_S = np.repeat(users.starts, counts_U)
            samples_before_U = np.cumsum(counts_U) - counts_U
            number_within_user_S = np.arange(len(start_S)) - np.repeat(samples_before_U, counts_U)
            target_S = start_S + 1 + number_within_user_S

            # The oldest item that the prompt shows: limited by tokens, by the user's first item,
            # and by the number of items, as in SampleBuilder.prompt_ids.
            room = builder.num_history_tokens + len(builder.separator)
            fitting_S = np.searchsorted(before_E1, before_E1[target_S] - room)
            most_items_S = target_S - builder.max_history_items
            begin_S = np.maximum.reduce([fitting_S, start_S, most_items_S])

            # tokens_before counts a separator after each item, also after the newest, where the
            # prompt has none.
            history_S = before_E1[target_S] - before_E1[begin_S] - len(builder.separator)
            response_S = builder.item_ids.lengths[values[target_S]] + len(builder.end)
            num_tokens_S = len(builder.prefix) + history_S + len(builder.suffix) + response_S
            parts.append(num_tokens_S.astype(np.int32))
        return np.concatenate(parts)


class EvaluationSamples(Dataset):
    """One sample for each case, in order. What it generates is the case's first target, the item
    that came next."""

    def __init__(self, cases: Cases, builder: SampleBuilder) -> None:
        self.cases = cases
        self.next_items = cases.next_items()
        self.builder = builder

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.builder.sample(self.cases.histories[index], int(self.next_items[index]))
        return sample | {"sample_id": index, "user": int(self.cases.users[index])}
