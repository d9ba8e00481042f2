"""Semantic IDs: an item's codes as tokens, `<a_12><b_3><c_77>` (LC-Rec). Read, write, make unique.

The file is LC-Rec's *.index.json: {item: ["<a_12>", "<b_3>", "<c_77>"]}.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np

from ilrec.errors import InputError
from ilrec.files.outputs import whole_file
from ilrec.files.reading import read_json

SemanticId = tuple[str, ...]


def read_semantic_ids(path: str | Path, item_ids: Sequence[str]) -> list[SemanticId]:
    """The semantic ID of each of `item_ids`, in that order. Other items in the file are ignored.

    Raises InputError if the file is missing or malformed, or lacks an item.
    """
    index = read_json(path, "make it with `ilrec ids`")
    if not isinstance(index, dict):
        raise InputError(
            f'{path}: expected {{item: ["<a_1>", "<b_2>", ...]}}, got a {type(index).__name__}'
        )
    missing = [item for item in item_ids if item not in index]
    if missing:
        raise InputError(
            f"{path}: no semantic ID for item {missing[0]!r} ({len(missing)} of {len(item_ids)} "
            "items are missing); build the index from the same data"
        )
    semantic_ids = []
    for item in item_ids:
        codes = index[item]
        if not isinstance(codes, list) or not codes or not all(map(_is_code, codes)):
            raise InputError(
                f"{path}: item {item!r}: expected a list of tokens like "
                f'["<a_1>", "<b_2>"], got {codes!r}'
            )
        semantic_ids.append(tuple(codes))
    return semantic_ids


def _is_code(code: object) -> bool:
    """Whether it is some text. JSON can spell half of a surrogate pair, which is no text."""
    return isinstance(code, str) and code != "" and code.encode(errors="ignore").decode() == code


def write_semantic_ids(
    path: str | Path, item_ids: Sequence[str], semantic_ids: Sequence[SemanticId]
) -> None:
    """Write the whole file, or nothing: a reader never sees half of it."""
    index = {item: list(codes) for item, codes in zip(item_ids, semantic_ids, strict=True)}
    with whole_file(path) as beside:
        beside.write_text(json.dumps(index) + "\n", encoding="utf-8")


def format_codes(codes_IL: np.ndarray) -> list[SemanticId]:
    """Codes int [I, L] -> tokens. Code c is `<a_c>` on the first level, `<b_c>` on the second."""
    semantic_ids = []
    for codes in codes_IL.tolist():
        semantic_ids.append(tuple(_token(level, code) for level, code in enumerate(codes)))
    return semantic_ids


def _token(level: int, code: int) -> str:
    return f"<{chr(ord('a') + level)}_{code}>"


def resolve_collisions(semantic_ids: Sequence[SemanticId]) -> list[SemanticId]:
    """Items that share an ID get one more token, 0, 1, 2, ... in item order. The others stay.

    A number that would give the ID of another item is passed over. The end token that closes every
    response tells IDs of different lengths apart.
    """
    # All items with the same ID get their numbers from one iterator, which never gives one twice.
    counts = Counter(semantic_ids)
    longer: dict[SemanticId, Iterator[SemanticId]] = {}
    resolved = []
    for codes in semantic_ids:
        if counts[codes] == 1:
            resolved.append(codes)
            continue
        if codes not in longer:
            longer[codes] = _longer(codes, counts)
        resolved.append(next(longer[codes]))
    return resolved


def _longer(codes: SemanticId, taken: Container[SemanticId]) -> Iterator[SemanticId]:
    """The codes with one more token, as often as asked for, without the IDs in `taken`."""
    for number in itertools.count():
        candidate = (*codes, _token(len(codes), number))
        if candidate not in taken:
            yield candidate


def item_tokens(semantic_ids: Sequence[SemanticId]) -> list[str]:
    """The distinct tokens, sorted by level and number. The order is the same in every process and
    run."""
    distinct = set(itertools.chain.from_iterable(semantic_ids))
    return sorted(distinct, key=_level_and_number)


def _level_and_number(token: str) -> tuple[str, int, str]:
    """Sorts <a_9> before <a_10> before <b_0>; of one level the shorter token is the smaller
    number."""
    return token[:2], len(token), token
