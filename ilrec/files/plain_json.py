"""A JSON parser that loses nothing silently.

Python's own parser keeps the last of two equal keys without a word, and reads half a character (a
surrogate without its pair), which no UTF-8 file, tokenizer or Arrow table can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# How JSON spells a surrogate. A pair of them is one character; one alone is none.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises ValueError. Its text is `line:column: reason`, or ` reason` where no place is known.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(" nested too deeply") from None
    except ValueError as error:
        # A repeated key, or a number of thousands of digits. Python's advice after `;` is for
        # programmers.
        raise ValueError(f" {str(error).partition(';')[0]}") from None
    if SURROGATE.search(text):
        _require_whole_characters(content)
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict. Equal keys are fine if their values are equal, too."""
    content = dict(pairs)
    if len(content) < len(pairs):
        for name, value in pairs:
            if content[name] != value:
                raise ValueError(f"{name!r} is there twice, with two values; keep one")
    return content


def _require_whole_characters(content: Any) -> None:
    half = next(_half_characters(content, ""), None)
    if half:
        raise ValueError(
            f"{half} has half a character (a surrogate without its pair), which no file can hold; "
            "mend or remove it"
        )


def _half_characters(content: Any, place: str) -> Iterator[str]:
    """The places of all texts with a lone surrogate, each with the keys that lead to it."""
    if isinstance(content, str):
        if any("\ud800" <= character <= "\udfff" for character in content):
            yield f"{place} {content!r:.80}"
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _half_characters(name, place)
            yield from _half_characters(value, f"{place} {name!r}:")
    elif isinstance(content, list):
        for value in content:
            yield from _half_characters(value, place)
