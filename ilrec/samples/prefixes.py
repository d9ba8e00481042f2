"""Histories -> token ids: samples for training and ranking.

A sample is prompt_ids(history) + response_ids(target) in training and in ranking alike, token for
token. Every piece of text is tokenized once, when the builder is made; a sample only joins lists of
ids, when it is asked for. Under `supervision: every_item` one sample has several targets
(windows.py): what separates two items then also follows the last of a prompt, so that a prompt is
the beginning of a longer one.

Shapes: I items of the catalogue, E interactions in the flat array of all users, S samples.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.prompts import Prompt
from ilrec.samples.text_tokens import inside_text

# The label that the loss skips: PyTorch's convention, which the vocabulary operation shares.
IGNORE_INDEX = -100
# Lengths are computed for this many users at once: what is held meanwhile does not grow with the
# data.
USERS_AT_ONCE = 50_000
# Characters of an item's text in a message: enough to find it by.
MAX_SHOWN = 100
logger = logging.getLogger(__name__)


class SampleBuilder:
    """Renders histories and items as token ids for one tokenizer, which has prompt.new_tokens().

    max_length: tokens of prompt and longest response; a history that does not fit loses its oldest
        items.
    every_item: an item is followed by the separator alone, or by the end token and the separator
    where one item's tokens begin another's; there is no suffix.
    Raises InputError where the tokenizer lacks a token or mixes up items, or a history of one item
    may not fit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        max_length: int,
        max_history_items: int,
        every_item: bool,
    ) -> None:
        prefix, self.separator, self.suffix = _wording_ids(tokenizer, prompt)
        self.item_ids = prompt.item_ids(tokenizer)
        self.prefix = _leading_bos(tokenizer) + prefix
        self.end = [tokenizer.eos_token_id]
        if every_item:
            self.end = self.end if _one_begins_another(self.item_ids) else []
            self.separator = self.suffix = self.end + self.separator
        self.max_history_items = max_history_items
        longest_item = int(self.item_ids.lengths.argmax())
        longest = int(self.item_ids.lengths[longest_item])
        num_fixed = len(self.prefix) + len(self.suffix) + longest + len(self.end)
        self.num_history_tokens = max_length - num_fixed
        # Each item with what follows it; nothing follows the last.
        self.num_window_tokens = max_length - len(self.prefix) + len(self.separator) - len(self.end)
        if self.num_history_tokens < longest:
            raise InputError(
                f"max_length: {max_length} tokens cannot hold the prompt, one item of history and a response; the longest "
                f"item, number {longest_item} from 0 in catalogue order, has {longest} tokens: "
                f"{_shortened(prompt.item_text(longest_item))}. Make it shorter, or train with a max_length of "
                f"{num_fixed + longest} or more"
            )

    def response_ids(self, item: int) -> list[int]:
        """The item's tokens and the end token, where there is one."""
        return self.item_ids[item].tolist() + self.end

    def response_sequences(self) -> Ragged:
        """response_ids of every item, for ItemTrie."""
        values = np.insert(
            self.item_ids.values,
            np.repeat(self.item_ids.ends, len(self.end)),
            self.end * len(self.item_ids),
        )
        return Ragged.from_lengths(values, self.item_ids.lengths + len(self.end))

    def item_token_ids(self) -> list[int]:
        """Sorted tokens that can occur in a response."""
        return sorted({*np.unique(self.item_ids.values).tolist(), *self.end})

    def tokens_before(self, items_E: np.ndarray) -> np.ndarray:
        """int64 [E + 1]: tokens of the items before each place of a flat array of items, each with
        the separator after it."""
        costs_I = self.item_ids.lengths + len(self.separator)
        return np.concatenate([[0], np.cumsum(costs_I[items_E])])

    def prompt_ids(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """The history, item numbers with the oldest first, as a prompt: its newest items, as many
        as fit."""
        newest = list(history[-self.max_history_items :])
        begin, room = len(newest), self.num_history_tokens + len(self.separator)
        while begin > 0 and room >= (
            needed := len(self.item_ids[newest[begin - 1]]) + len(self.separator)
        ):
            begin, room = begin - 1, room - needed
        ids = list(self.prefix)
        for count, item in enumerate(newest[begin:]):
            if count:
                ids += self.separator
            ids += self.item_ids[item].tolist()
        return ids + self.suffix

    def sample(self, history: Sequence[int] | np.ndarray, target: int) -> dict[str, Any]:
        """input_ids and labels (IGNORE_INDEX on the prompt), lists of equal length. items: whole
        history and target."""
        prompt, response = self.prompt_ids(history), self.response_ids(target)
        return {
            "input_ids": prompt + response,
            "labels": [IGNORE_INDEX] * len(prompt) + response,
            "items": [*history, target],
            "num_targets": 1,
        }

    def window(
        self, sequence: Sequence[int] | np.ndarray, begin: int, first: int, end: int
    ) -> dict[str, Any]:
        """Under every_item: items [begin, end) of a user, of which [first, end) are targets. items:
        all of the user's up to `end`."""
        ids, labels = list(self.prefix), [IGNORE_INDEX] * len(self.prefix)
        for place in range(begin, end):
            if place > begin:
                between = self.separator[len(self.end) :]
                ids, labels = ids + between, labels + [IGNORE_INDEX] * len(between)
            response = self.response_ids(sequence[place])
            ids += response
            labels += response if place >= first else [IGNORE_INDEX] * len(response)
        return {
            "input_ids": ids,
            "labels": labels,
            "items": sequence[:end],
            "num_targets": end - first,
        }


def _shortened(text: str) -> str:
    """An item's text in a message."""
    return text.strip() if len(text) <= MAX_SHOWN else f"{text.strip()[:MAX_SHOWN]}..."


def _one_begins_another(sequences: Ragged) -> bool:
    """Whether a sequence is the beginning of a longer one. In lexicographic order such a pair has
    one side by side."""
    ordered = sorted(
        sequence.astype(">i4").tobytes() for sequence in sequences
    )  # bytes in this order sort as the numbers do
    return any(
        len(shorter) < len(longer) and longer.startswith(shorter)
        for shorter, longer in itertools.pairwise(ordered)
    )


def _wording_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[list[int]]:
    """Prefix, separator and suffix. A special token that they spell is meant: a chat template's."""
    inside, found = inside_text(tokenizer), []
    for name, reader in (("prefix", tokenizer), ("separator", inside), ("suffix", inside)):
        text = getattr(prompt, name)
        ids = reader(text, add_special_tokens=False)["input_ids"]
        if text and not ids:
            raise InputError(
                f"prompt_{name}: {text!r} becomes no token with this tokenizer; "
                "expected a text that it can write, or '' for none"
            )
        if tokenizer.unk_token_id in ids and tokenizer.unk_token not in text:
            logger.warning(
                "prompt_%s: %r holds characters that the tokenizer does not know: the "
                "model sees %s there",
                name,
                text,
                tokenizer.unk_token,
            )
        found.append(ids)
    return found


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts one before a text by itself."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def require_targets(dataset: InteractionDataset, num_samples: int) -> None:
    if num_samples == 0:
        raise InputError(
            f"{dataset.name}: nothing to train on: every user's last two items are held out and at "
            "most one is left; expected some users with four items or more"
        )


class TrainingSamples(Dataset):
    """`supervision: last_item`: one sample for each item of a training sequence but the first.
    Rendered when asked for."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences, self.builder = dataset.training_sequences(), builder
        self.ends = np.cumsum(np.maximum(self.sequences.lengths - 1, 0))
        require_targets(dataset, int(self.ends[-1]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        user = int(np.searchsorted(self.ends, index, side="right"))
        sequence = self.sequences[user]
        position = len(sequence) - int(self.ends[user] - index)
        return self.builder.sample(sequence[:position], int(sequence[position])) | {
            "sample_id": index
        }

    def num_tokens(self) -> np.ndarray:
        """int32 [S]: how long each sample is, without rendering any."""
        builder, values, starts = self.builder, self.sequences.values, self.sequences.starts
        before_E1 = builder.tokens_before(values)
        separator, room = (
            len(builder.separator),
            builder.num_history_tokens + len(builder.separator),
        )
        fixed = len(builder.prefix) + len(builder.suffix) + len(builder.end)
        lengths_I = builder.item_ids.lengths
        parts = []
        for first in range(0, len(starts), USERS_AT_ONCE):
            users = slice(first, first + USERS_AT_ONCE)
            counts_U = np.maximum(self.sequences.lengths[users] - 1, 0)
            start_S = np.repeat(starts[users], counts_U)
            target_S = (
                start_S
                + 1
                + np.arange(len(start_S))
                - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
            )
            fitting_S = np.searchsorted(before_E1, before_E1[target_S] - room)
            begin_S = np.maximum.reduce([fitting_S, start_S, target_S - builder.max_history_items])
            prompt_S = before_E1[target_S] - before_E1[begin_S] - separator
            parts.append((fixed + prompt_S + lengths_I[values[target_S]]).astype(np.int32))
        return np.concatenate(parts)


class EvaluationSamples(Dataset):
    """One sample per user (of `users`), in the order of the dataset's users: the target of `split`
    ("valid" or "test")."""

    def __init__(
        self,
        dataset: InteractionDataset,
        builder: SampleBuilder,
        split: str,
        users: slice = slice(None),
    ) -> None:
        histories, targets = dataset.evaluation(split)
        self.histories, self.targets = histories[users], targets[users]
        self.builder = builder

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.builder.sample(self.histories[index], int(self.targets[index])) | {
            "sample_id": index
        }
