"""How a history and an item are written: prefix, items joined by the separator, suffix; the target.

One contract for training and ranking. Each piece is tokenised by itself, so that a text starts with
the space that sets it apart from the one before and never ends with one.
"""

from __future__ import annotations

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
    """One item format with its wording. An empty prefix, separator or suffix is allowed: tokens
    cost compute."""

    prefix: str
    separator: str
    suffix: str

    def item_text(self, item: int) -> str:
        """The item for readers, and for a tokenizer made from scratch."""

    def item_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Each item's tokens, int32, the same in a history and as a response.

        Raises InputError where items would be mixed up.
        """

    def new_tokens(self) -> list[str]:
        """Tokens that the tokenizer must know as one each, in a fixed order; none for text."""


@dataclass(frozen=True)
class Wording:
    """The text around the items; None takes the item format's own."""

    prefix: str | None
    separator: str | None
    suffix: str | None

    def filled(self, prefix: str, separator: str, suffix: str) -> tuple[str, str, str]:
        given = (self.prefix, self.separator, self.suffix)
        own = (prefix, separator, suffix)
        first, second, third = (o if g is None else g for g, o in zip(given, own, strict=True))
        return first, second, third


class TitlePrompt:
    """Items by quoted title (BIGRec, Bao et al. 2023). Items with the same title cannot be told
    apart.

    Titles that differ in case, further spaces or the form of their characters (NFKC) alone count as
    the same where the tokenizer writes them alike. Raises InputError where an item has no title.
    """

    def __init__(self, titles: Sequence[str], wording: Wording) -> None:
        untitled = [item for item, title in enumerate(titles) if not title]
        if untitled:
            raise InputError(
                f"item_format: title needs a title for each item; {len(untitled)} of {len(titles)} have "
                f"none, first number {untitled[0]} in catalogue order; add titles, or use semantic_id"
            )
        self.titles = titles
        self.prefix, self.separator, self.suffix = wording.filled(
            "### Instruction: Given the items that a user chose, oldest first, recommend the next item.\n### Input:",
            ",",
            "\n### Response:",
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

    Raises InputError where two items have the same one.
    """

    def __init__(self, semantic_ids: Sequence[SemanticId], wording: Wording) -> None:
        first_with: dict[SemanticId, int] = {}
        for item, codes in enumerate(semantic_ids):
            if (first := first_with.setdefault(codes, item)) != item:
                raise InputError(
                    f"semantic IDs: items number {first} and {item} in catalogue "
                    f"order have the same one, {''.join(codes)}; expected one for "
                    "each item"
                )
        self.semantic_ids = semantic_ids
        self.prefix, self.separator, self.suffix = wording.filled(
            "### Instruction: The user has interacted with these items in chronological order:",
            ",",
            ". Predict the next item that the user may expect.\n### Response:",
        )

    def item_text(self, item: int) -> str:
        return "".join(self.semantic_ids[item])

    def item_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """A number for each code. Items differ in their codes, and codes in their numbers."""
        numbers = code_ids(tokenizer, self.new_tokens())
        flat = (numbers[code] for codes in self.semantic_ids for code in codes)
        values = np.fromiter(flat, np.int32)
        return Ragged.from_lengths(values, np.fromiter(map(len, self.semantic_ids), np.int64))

    def new_tokens(self) -> list[str]:
        return item_tokens(self.semantic_ids)


def check_apart(titles: Sequence[str], ids: Ragged) -> None:
    """InputError where different titles have the same tokens. Says how many have the same title."""
    first_with: dict[bytes, int] = {}
    firsts = [first_with.setdefault(row.tobytes(), item) for item, row in enumerate(ids)]
    alike = [(first, item) for item, first in enumerate(firsts) if first != item]
    mixed_up = [
        (first, item)
        for first, item in alike
        if _same_for_readers(titles[first]) != _same_for_readers(titles[item])
    ]
    if mixed_up:
        first, item = mixed_up[0]
        raise InputError(
            f"item_format: title: {len(mixed_up)} of {len(titles)} items have the same tokens as "
            f"an item of another title, first {titles[item]!r} (number {item} in catalogue order) "
            f"and {titles[first]!r} (number {first}): the tokenizer cannot write what sets them "
            "apart; take a model that can, or item_format: semantic_id"
        )
    if alike:
        logger.warning(
            "%d of %d items have the same title as an item before them, first %r: they "
            "cannot be told apart, and a tie counts against the target",
            len(alike),
            len(titles),
            titles[alike[0][1]],
        )


def check_readable(titles: Sequence[str], ids: Ragged, tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError where a title holds the end token. Says how many hold the unknown one."""
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
    """int64, ascending: the items with this token."""
    places = np.flatnonzero(ids.values == token_id)
    return np.unique(np.searchsorted(ids.ends, places, side="right"))


def _same_for_readers(title: str) -> str:
    """A title without case, further spaces and forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())
