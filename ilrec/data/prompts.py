"""How a history and an item are written: prefix, items joined by the separator, suffix; then the target's text.

One contract for training and ranking. Each piece is tokenised by itself, so that a text starts with the space that sets
it apart from the one before and never ends with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ilrec.errors import InputError
from ilrec.items.semantic_ids import SemanticId, item_tokens


class Prompt(Protocol):
    """One item format with its wording. An empty prefix, separator or suffix is allowed: tokens cost compute."""

    prefix: str
    separator: str
    suffix: str

    def item_text(self, item: int) -> str:
        """The item's text, the same in a history and as a response."""

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
    """Items by quoted title (BIGRec, Bao et al. 2023). Items with the same title cannot be told apart.

    Raises InputError where an item has no title.
    """

    def __init__(self, titles: Sequence[str], wording: Wording) -> None:
        untitled = [item for item, title in enumerate(titles) if not title]
        if untitled:
            raise InputError(f"item_format: title needs a title for each item; {len(untitled)} of {len(titles)} have "
                             f"none, first number {untitled[0]} in catalogue order; add titles, or use semantic_id")
        self.titles = titles
        self.prefix, self.separator, self.suffix = wording.filled(
            "### Instruction: Given the items that a user chose, oldest first, recommend the next item.\n### Input:",
            ",", "\n### Response:")

    def item_text(self, item: int) -> str:
        return f' "{self.titles[item]}"'

    def new_tokens(self) -> list[str]:
        return []


class SemanticIdPrompt:
    """Items by semantic ID, `<a_12><b_3><c_77>` (LC-Rec, Zheng et al. 2024), with tokens of their own."""

    def __init__(self, semantic_ids: Sequence[SemanticId], wording: Wording) -> None:
        self.semantic_ids = semantic_ids
        self.prefix, self.separator, self.suffix = wording.filled(
            "### Instruction: The user has interacted with these items in chronological order:",
            ",", ". Predict the next item that the user may expect.\n### Response:")

    def item_text(self, item: int) -> str:
        return "".join(self.semantic_ids[item])

    def new_tokens(self) -> list[str]:
        return item_tokens(self.semantic_ids)
