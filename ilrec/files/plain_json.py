"""JSON that loses nothing silently: no key stands there twice with two values, and no text has half
a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# JSON's spelling of a surrogate: one of a pair, which is a character, or alone, which is none.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """Raises ValueError, its text `line:column: reason` where there is a place."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(" nested too deeply") from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise ValueError(f" {str(error).partition(';')[0]}") from None
    half = next(_half_characters(content, ""), None) if SURROGATE.search(text) else None
    if half:
        raise ValueError(
            f"{half} has half a character (a surrogate without its pair), which no file can hold; mend or remove it"
        )
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        for name, value in pairs:
            if content[name] != value:
                raise ValueError(f"{name!r} is there twice, with two values; keep one")
    return content


def _half_characters(content: Any, place: str) -> Iterator[str]:
    """Where there is a lone surrogate, which JSON can spell and neither UTF-8, tokenizers nor Arrow
    can hold."""
    if isinstance(content, str) and any("\ud800" <= character <= "\udfff" for character in content):
        yield f"{place} {content!r:.80}"
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _half_characters(name, place)
            yield from _half_characters(value, f"{place} {name!r}:")
    elif isinstance(content, list):
        for value in content:
            yield from _half_characters(value, place)
