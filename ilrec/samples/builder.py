"""Histories and items -> token ids: what the model reads, in training and in ranking.

A sample is prompt_ids(history) + response_ids(target), token for token the same in training and in
ranking. Each piece of text is tokenized once, when the builder is made; a sample only joins lists
of ids, when it is asked for. Under `supervision: every_item` one sample has several targets
(windows.py). There the text between two items also follows the last item of a prompt, so that a
prompt is the beginning of a longer one.

Shapes: I items of the catalogue, E interactions in the flat array of all users.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ilrec.errors import InputError
from ilrec.interactions.ragged import Ragged
from ilrec.samples.prompts import Prompt
from ilrec.samples.text_tokens import inside_text

# The loss skips a token with this label: PyTorch's convention, which the vocabulary operation
# shares.
IGNORE_INDEX = -100
# A message shows this many characters of an item's text, enough to find the item.
MAX_SHOWN = 100
logger = logging.getLogger(__name__)


class SampleBuilder:
    """Renders histories and items as token ids, for a tokenizer that has prompt.new_tokens().

    max_length: most tokens of a prompt together with the longest response. A history that does not
        fit loses its oldest items.
    every_item: an item is followed by the separator, or by the end token and the separator if some
        item's tokens begin another's; there is no suffix.
    Raises InputError if the tokenizer lacks a token or mixes up items, or if a history of one item
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
        self.max_length = max_length
        self.max_history_items = max_history_items

        # All pieces of text become ids here, once.
        prefix, self.separator, self.suffix = _wording_ids(tokenizer, prompt)
        self.prefix = _leading_bos(tokenizer) + prefix
        self.item_ids = prompt.item_ids(tokenizer)
        self.end = [tokenizer.eos_token_id]
        if every_item:
            # An end token after each item costs compute. It is needed only to tell an item from a
            # longer one that begins with the same tokens.
            if not _one_begins_another(self.item_ids):
                self.end = []
            self.separator = self.end + self.separator
            self.suffix = self.separator

        # The room for a history is what the longest response leaves of max_length.
        longest_item = int(self.item_ids.lengths.argmax())
        longest = int(self.item_ids.lengths[longest_item])
        num_fixed = len(self.prefix) + len(self.suffix) + longest + len(self.end)
        self.num_history_tokens = max_length - num_fixed
        if self.num_history_tokens < longest:
            raise InputError(
                f"max_length: {max_length} tokens cannot hold the prompt, one item of history and "
                f"a response; the longest item, number {longest_item} from 0 in catalogue order, "
                f"has {longest} tokens: {_shortened(prompt.item_text(longest_item))}. Make it "
                f"shorter, or train with a max_length of {num_fixed + longest} or more"
            )

    def response_ids(self, item: int) -> list[int]:
        """The item's tokens and, if there is one, the end token."""
        return self.item_ids[item].tolist() + self.end

    def response_sequences(self) -> Ragged:
        """response_ids of every item, for ItemTrie."""
        places_of_ends = np.repeat(self.item_ids.ends, len(self.end))
        ends = self.end * len(self.item_ids)
        values = np.insert(self.item_ids.values, places_of_ends, ends)
        return Ragged.from_lengths(values, self.item_ids.lengths + len(self.end))

    def item_token_ids(self) -> list[int]:
        """The tokens that can occur in a response, sorted."""
        return sorted({*np.unique(self.item_ids.values).tolist(), *self.end})

    def tokens_before(self, items_E: np.ndarray) -> np.ndarray:
        """int64 [E + 1]: how many tokens the items before each place of a flat array have together,
        each with the separator after it."""
        costs_I = self.item_ids.lengths + len(self.separator)
        return np.concatenate([[0], np.cumsum(costs_I[items_E])])

    def prompt_ids(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """The prompt for a history of item numbers, oldest first. It shows the newest items, as
        many as fit."""
        newest = list(history[-self.max_history_items :])

        # Items are taken from the newest backwards. Each needs its tokens and one separator, but
        # one separator fewer than items is written; hence the room for one more.
        room = self.num_history_tokens + len(self.separator)
        begin = len(newest)
        while begin > 0:
            needed = len(self.item_ids[newest[begin - 1]]) + len(self.separator)
            if needed > room:
                break
            room -= needed
            begin -= 1

        ids = list(self.prefix)
        for count, item in enumerate(newest[begin:]):
            if count:
                ids += self.separator
            ids += self.item_ids[item].tolist()
        return ids + self.suffix

    def sample(self, history: Sequence[int] | np.ndarray, target: int) -> dict[str, Any]:
        """A prompt and its response.

        input_ids, labels: lists of equal length, with IGNORE_INDEX as the prompt's labels. items:
        the whole history, also what the prompt does not show, and the target.
        """
        prompt = self.prompt_ids(history)
        response = self.response_ids(target)
        return {
            "input_ids": prompt + response,
            "labels": [IGNORE_INDEX] * len(prompt) + response,
            "items": [*history, target],
            "num_targets": 1,
        }

    def window(
        self, sequence: Sequence[int] | np.ndarray, begin: int, first: int, end: int
    ) -> dict[str, Any]:
        """Under every_item: the items [begin, end) of a user, of which [first, end) are targets.

        input_ids, labels: as in sample(). items: all of the user's items up to `end`.
        """
        ids = list(self.prefix)
        labels = [IGNORE_INDEX] * len(self.prefix)
        for place in range(begin, end):
            # A response brings its end token, so only the rest of the separator comes between.
            if place > begin:
                between = self.separator[len(self.end) :]
                ids += between
                labels += [IGNORE_INDEX] * len(between)
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
    """An item's text as a message shows it."""
    if len(text) <= MAX_SHOWN:
        return text.strip()
    return f"{text.strip()[:MAX_SHOWN]}..."


def _one_begins_another(sequences: Ragged) -> bool:
    """Whether one sequence is the beginning of a longer one."""
    # Big-endian bytes sort as the numbers do, and in that order some such pair lies side by side.
    ordered = sorted(sequence.astype(">i4").tobytes() for sequence in sequences)
    for shorter, longer in itertools.pairwise(ordered):
        if len(shorter) < len(longer) and longer.startswith(shorter):
            return True
    return False


def _wording_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[list[int]]:
    """The ids of prefix, separator and suffix.

    A special token that they spell is read as that token, as a chat template needs it. Raises
    InputError for a text that becomes no token.
    """
    inside = inside_text(tokenizer)
    found = []
    # Only the prefix begins a text, and only there a tokenizer may add a space.
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
                "prompt_%s: %r holds characters that the tokenizer does not know: the model sees "
                "%s there",
                name,
                text,
                tokenizer.unk_token,
            )
        found.append(ids)
    return found


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, if the tokenizer puts one before a text by itself."""
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        return [bos]
    return []
