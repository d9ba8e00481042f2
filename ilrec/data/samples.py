"""Histories -> token ids: tokenised samples for training and ranking, and their collators.

A sample is prompt_ids(history) + response_ids(target) in training and in ranking alike, token for token. Every piece of
text is tokenised once, when the builder is made; a sample only joins lists of ids. Under `supervision: every_item` one sample has
several targets (windows.py): what separates two items then also follows the last of a prompt, so that a prompt is the
beginning of a longer one.

Shapes: B batch, T sequence (padded), U longest history of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ilrec.data.interactions import InteractionDataset
from ilrec.data.prompts import Prompt
from ilrec.errors import InputError

# The label that the loss skips: PyTorch's convention, which the vocabulary operation shares.
IGNORE_INDEX = -100


class SampleBuilder:
    """Renders histories and items as token ids for one tokenizer. The tokenizer must know prompt.new_tokens() already.

    max_length: tokens of prompt and longest response; a history that does not fit loses its oldest items.
    every_item: an item is followed by the separator alone, or by the end token and the separator where one item's tokens begin
    another's; there is no suffix.
    Raises InputError where the tokenizer lacks a token, or a history of one item may not fit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, num_items: int, max_length: int,
                 max_history_items: int, every_item: bool) -> None:
        _check_known(tokenizer, prompt.new_tokens())
        texts = [prompt.prefix, prompt.separator, prompt.suffix, *(prompt.item_text(item) for item in range(num_items))]
        prefix, self.separator, self.suffix, *self.item_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.prefix = _leading_bos(tokenizer) + prefix
        self.end = [tokenizer.eos_token_id]
        if every_item:
            self.end = self.end if _one_begins_another(self.item_ids) else []
            self.separator = self.suffix = self.end + self.separator
        self.max_history_items = max_history_items
        longest = max(len(ids) for ids in self.item_ids)
        num_fixed = len(self.prefix) + len(self.suffix) + longest + len(self.end)
        self.num_history_tokens = max_length - num_fixed
        # Each item with what follows it; nothing follows the last.
        self.num_window_tokens = max_length - len(self.prefix) + len(self.separator) - len(self.end)
        if self.num_history_tokens < longest:
            raise InputError(f"max_length: {max_length} tokens cannot hold the prompt, one item of history and a "
                             f"response; expected at least {num_fixed + longest} (longest item: {longest} tokens)")

    def response_ids(self, item: int) -> list[int]:
        """The item's tokens and the end token, where there is one."""
        return self.item_ids[item] + self.end

    def response_sequences(self) -> list[list[int]]:
        """response_ids of every item, for ItemTrie."""
        return [ids + self.end for ids in self.item_ids]

    def prompt_ids(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """The history, item numbers with the oldest first, as a prompt: its newest items, as many as fit."""
        newest = list(history[-self.max_history_items:])
        begin, room = len(newest), self.num_history_tokens + len(self.separator)
        while begin > 0 and room >= (needed := len(self.item_ids[newest[begin - 1]]) + len(self.separator)):
            begin, room = begin - 1, room - needed
        ids = list(self.prefix)
        for count, item in enumerate(newest[begin:]):
            if count:
                ids += self.separator
            ids += self.item_ids[item]
        return ids + self.suffix

    def sample(self, history: Sequence[int] | np.ndarray, target: int) -> dict[str, Any]:
        """input_ids and labels (IGNORE_INDEX on the prompt), lists of equal length. items: whole history and target."""
        prompt, response = self.prompt_ids(history), self.response_ids(target)
        return {"input_ids": prompt + response, "labels": [IGNORE_INDEX] * len(prompt) + response,
                "items": [*history, target], "num_targets": 1}

    def window(self, sequence: Sequence[int] | np.ndarray, begin: int, first: int, end: int) -> dict[str, Any]:
        """Under every_item: items [begin, end) of a user, of which [first, end) are targets. items: all of the user's up to `end`."""
        ids, labels = list(self.prefix), [IGNORE_INDEX] * len(self.prefix)
        for place in range(begin, end):
            if place > begin:
                between = self.separator[len(self.end):]
                ids, labels = ids + between, labels + [IGNORE_INDEX] * len(between)
            response = self.response_ids(sequence[place])
            ids += response
            labels += response if place >= first else [IGNORE_INDEX] * len(response)
        return {"input_ids": ids, "labels": labels, "items": sequence[:end], "num_targets": end - first}


def _one_begins_another(sequences: Sequence[list[int]]) -> bool:
    """Whether a sequence is the beginning of a longer one. In lexicographic order such a pair has one side by side."""
    ordered = sorted(sequences)
    return any(len(shorter) < len(longer) and longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(ordered))


def _check_known(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab() if tokens else {}
    unknown = [token for token in tokens if token not in vocabulary]
    if unknown:
        raise InputError(f"tokenizer: {len(unknown)} of {len(tokens)} semantic-ID tokens are unknown to it, first "
                         f"{unknown[0]!r}; use the tokenizer and the semantic IDs that the model was trained with")


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts one before a text by itself."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def require_targets(dataset: InteractionDataset, num_samples: int) -> None:
    if num_samples == 0:
        raise InputError(f"{dataset.name}: nothing to train on: every user's last two items are held out and at "
                         "most one is left; expected some users with four items or more")


class TrainingSamples(Dataset):
    """`supervision: last_item`: one sample for each item of a training sequence but the first. Rendered when asked for."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder) -> None:
        self.sequences, self.builder = dataset.training_sequences(), builder
        self.ends = np.cumsum([max(len(sequence) - 1, 0) for sequence in self.sequences])
        require_targets(dataset, int(self.ends[-1]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        user = int(np.searchsorted(self.ends, index, side="right"))
        sequence = self.sequences[user]
        position = len(sequence) - int(self.ends[user] - index)
        return self.builder.sample(sequence[:position], int(sequence[position]))


class EvaluationSamples(Dataset):
    """One sample per user, in the order of the dataset's users: the target of `split` ("valid" or "test")."""

    def __init__(self, dataset: InteractionDataset, builder: SampleBuilder, split: str) -> None:
        self.histories, self.targets = dataset.evaluation(split)
        self.builder = builder

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.builder.sample(self.histories[index], int(self.targets[index]))


class TrainingCollator:
    """Samples -> int64 tensors, padded on the right, where causal attention never looks back from a real token.

    input_ids, attention_mask, labels [B, T].
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        input_ids = [sample["input_ids"] for sample in samples]
        return {"input_ids": _padded(input_ids, self.pad_token_id, left=False),
                "attention_mask": _padded(([1] * len(ids) for ids in input_ids), 0, left=False),
                "labels": _padded((sample["labels"] for sample in samples), IGNORE_INDEX, left=False)}


class PromptCollator:
    """Evaluation samples -> prompts without their responses, int64, padded on the left, so that all end together.

    input_ids, attention_mask [B, T]; target_item [B].
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        prompts = [sample["input_ids"][:sample["labels"].count(IGNORE_INDEX)] for sample in samples]
        return {"input_ids": _padded(prompts, self.pad_token_id, left=True),
                "attention_mask": _padded(([1] * len(ids) for ids in prompts), 0, left=True),
                "target_item": torch.tensor([sample["items"][-1] for sample in samples])}


def _padded(rows: Iterable[Sequence[int] | np.ndarray], value: int, left: bool) -> Tensor:
    rows = list(rows)
    width = max(len(row) for row in rows)
    padded_BT = np.full((len(rows), width), value, dtype=np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        padded_T[width - len(row) if left else 0:width if left else len(row)] = row
    return torch.from_numpy(padded_BT)
