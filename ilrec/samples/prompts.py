"""How a history and an item are written: prefix, items joined by the separator, suffix; then the
target.

Training and ranking use the same writing. Each piece is tokenized by itself. So a text begins with
the space that separates it from the one before, and never ends with one.
"""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from ilrec.errors import InputError
from ilrec.interactions.ragged import Ragged
from ilrec.items.semantic_ids import SemanticId, item_tokens
from ilrec.samples.item_tokens import tokenize_items
from ilrec.samples.text_tokens import inside_text
from ilrec.samples.vocabulary import code_ids

logger = logging.getLogger(__name__)


class Prompt(Protocol):
    """One item format with its wording. Prefix, separator and suffix may be empty, because each
    token of them costs compute."""

    prefix: str
    separator: str
    suffix: str

    def item_text(self, item: int) -> str:
        """The item as text, for readers and for a tokenizer that is made from scratch."""

    def item_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Each item's tokens, int32, the same in a history and as a response.

        Raises InputError if items would be mixed up.
        """

    def new_tokens(self) -> list[str]:
        """Texts that the tokenizer must know as one token each, in a fixed order; none for
        titles."""


@dataclass(frozen=True)
class Wording:
    """The text around the items. None means the item format's own text."""

    prefix: str | None
    separator: str | None
    suffix: str | None

    def filled(self, prefix: str, separator: str, suffix: str) -> tuple[str, str, str]:
        """(prefix, separator, suffix), with these for what is None."""
        return (
            prefix if self.prefix is None else self.prefix,
            separator if self.separator is None else self.separator,
            suffix if self.suffix is None else self.suffix,
        )


class TitlePrompt:
    """Items by quoted title (BIGRec, Bao et al. 2023). Items with the same title cannot be told
    apart.

    Titles count as the same if they differ only in case, in further spaces or in the form of their
    characters (NFKC), and the tokenizer writes them alike. Raises InputError if an item has no
    title.
    """

    def __init__(self, titles: Sequence[str], wording: Wording) -> None:
        untitled = [item for item, title in enumerate(titles) if not title]
        if untitled:
            raise InputError(
                f"item_format: title needs a title for each item; {len(untitled)} of "
                f"{len(titles)} have none, first number {untitled[0]} in catalogue order; "
                "add titles, or use semantic_id"
            )
        self.titles = titles
        self.prefix, self.separator, self.suffix = wording.filled(
            prefix="### Instruction: Given the items that a user chose, oldest first, recommend "
            "the next item.\n### Input:",
            separator=",",
            suffix="\n### Response:",
        )

    def item_text(self, item: int) -> str:
        return f' "{self.titles[item]}"'

    def item_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        ids = tokenize_items(inside_text(tokenizer), self.item_text, len(self.titles))
        check_apart(self.titles, ids)
        check_readable(self.titles, ids, tokenizer)
        return ids

    def new_tokens(self) -> list[str]:
        return []


class SemanticIdPrompt:
    """Items by semantic ID, `<a_12><b_3><c_77>` (LC-Rec, Zheng et al. 2024): a token for each code.

    Raises InputError if two items have the same ID.
    """

    def __init__(self, semantic_ids: Sequence[SemanticId], wording: Wording) -> None:
        first_with: dict[SemanticId, int] = {}
        for item, codes in enumerate(semantic_ids):
            first = first_with.setdefault(codes, item)
            if first != item:
                raise InputError(
                    f"semantic IDs: items number {first} and {item} in catalogue order have the "
                    f"same one, {''.join(codes)}; expected one for each item"
                )
        self.semantic_ids = semantic_ids
        self.prefix, self.separator, self.suffix = wording.filled(
            prefix="### Instruction: The user has interacted with these items in chronological "
            "order:",
            separator=",",
            suffix=". Predict the next item that the user may expect.\n### Response:",
        )

    def item_text(self, item: int) -> str:
        return "".join(self.semantic_ids[item])

    def item_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """A token number for each code. Items differ in their codes, and codes in their numbers."""
        number_of = code_ids(tokenizer, self.new_tokens())
        all_codes = itertools.chain.from_iterable(self.semantic_ids)
        values = np.fromiter((number_of[code] for code in all_codes), np.int32)
        return Ragged.from_lengths(values, np.fromiter(map(len, self.semantic_ids), np.int64))

    def new_tokens(self) -> list[str]:
        return item_tokens(self.semantic_ids)


def check_apart(titles: Sequence[str], ids: Ragged) -> None:
    """Raises InputError if different titles have the same tokens. Logs how many items have the same
    title as another."""
    # Pairs of items with the same tokens: the first that has them, and each later one.
    first_with: dict[bytes, int] = {}
    alike = []
    for item, row in enumerate(ids):
        first = first_with.setdefault(row.tobytes(), item)
        if first != item:
            alike.append((first, item))

    # That several items have one title is normal. That two titles have the same tokens is a fault,
    # because the model could not learn which of them is meant.
    mixed_up = []
    for first, item in alike:
        if _same_for_readers(titles[first]) != _same_for_readers(titles[item]):
            mixed_up.append((first, item))
    if mixed_up:
        first, item = mixed_up[0]
        raise InputError(
            f"item_format: title: {len(mixed_up)} of {len(titles)} items have the same tokens as "
            f"an item of another title, first {titles[item]!r} (number {item} in catalogue order) "
            f"and {titles[first]!r} (number {first}): the tokenizer cannot write the characters "
            "in which they differ; take a model that can, or item_format: semantic_id"
        )
    if alike:
        _, item = alike[0]
        logger.warning(
            "%d of %d items have the same title as an item before them, first %r: they cannot be "
            "told apart, and a tie counts against the target",
            len(alike),
            len(titles),
            titles[item],
        )


def check_readable(titles: Sequence[str], ids: Ragged, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError if a title holds the end token. Logs how many hold the unknown token."""
    ended = _items_with(tokenizer.eos_token_id, ids)
    if len(ended):
        raise InputError(
            f"item_format: title: {len(ended)} of {len(titles)} titles hold the end token "
            f"{tokenizer.eos_token!r}, first {titles[ended[0]]!r}; expected titles "
            "without it: every item ends with it"
        )
    unreadable = _items_with(tokenizer.unk_token_id, ids)
    if len(unreadable):
        logger.warning(
            "%d of %d titles hold characters that the tokenizer does not know, first %r",
            len(unreadable),
            len(titles),
            titles[unreadable[0]],
        )


def _items_with(token_id: int | None, ids: Ragged) -> np.ndarray:
    """int64, ascending: the items that have this token."""
    places = np.flatnonzero(ids.values == token_id)
    return np.unique(np.searchsorted(ids.ends, places, side="right"))


def _same_for_readers(title: str) -> str:
    """A title without case, further spaces, and different forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())
