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
    """The semantic ID of each of `item_ids`, in that order. Further items in the file are ignored.

    Raises InputError when the file is missing or malformed, or lacks an item.
    """
    index = read_json(path, "make it with tools/build_semantic_ids.py")
    if not isinstance(index, dict):
        raise InputError(
            f'{path}: expected {{item: ["<a_1>", "<b_2>", ...]}}, got a {type(index).__name__}'
        )
    missing = [item for item in item_ids if item not in index]
    if missing:
        raise InputError(
            f"{path}: no semantic ID for item {missing[0]!r} ({len(missing)} of {len(item_ids)} items are missing); "
            "build the index from the same data"
        )
    for item in item_ids:
        codes = index[item]
        if not isinstance(codes, list) or not codes or not all(map(_is_code, codes)):
            raise InputError(
                f'{path}: item {item!r}: expected a list of tokens like ["<a_1>", "<b_2>"], got {codes!r}'
            )
    return [tuple(index[item]) for item in item_ids]


def _is_code(code: object) -> bool:
    """Some text; half a surrogate pair, which JSON can spell, is none."""
    return isinstance(code, str) and code != "" and code.encode(errors="ignore").decode() == code


def write_semantic_ids(
    path: str | Path, item_ids: Sequence[str], semantic_ids: Sequence[SemanticId]
) -> None:
    """Beside and renamed: a reader never sees half a file."""
    index = {item: list(codes) for item, codes in zip(item_ids, semantic_ids, strict=True)}
    with whole_file(path) as beside:
        beside.write_text(json.dumps(index) + "\n", encoding="utf-8")


def format_codes(codes_IL: np.ndarray) -> list[SemanticId]:
    """Codes int [I, L] -> tokens: level l, code c is `<a_c>` for l = 0, `<b_c>` for l = 1, ..."""
    return [
        tuple(_token(level, code) for level, code in enumerate(codes))
        for codes in codes_IL.tolist()
    ]


def _token(level: int, code: int) -> str:
    return f"<{chr(ord('a') + level)}_{code}>"


def resolve_collisions(semantic_ids: Sequence[SemanticId]) -> list[SemanticId]:
    """Items that share an ID get one more token, 0, 1, 2, ... in item order; the others stay.

    A number that would make another item's ID is passed over. IDs of different length are told
    apart by the end token that closes every response.
    """
    counts = Counter(semantic_ids)
    longer = {codes: _longer(codes, counts) for codes, count in counts.items() if count > 1}
    return [next(longer[codes]) if codes in longer else codes for codes in semantic_ids]


def _longer(codes: SemanticId, taken: Container[SemanticId]) -> Iterator[SemanticId]:
    candidates = ((*codes, _token(len(codes), number)) for number in itertools.count())
    return (candidate for candidate in candidates if candidate not in taken)


def item_tokens(semantic_ids: Sequence[SemanticId]) -> list[str]:
    """The distinct tokens, shorter first, then by text: the same for every process and run."""
    return sorted(
        {token for codes in semantic_ids for token in codes},
        key=lambda token: (token[:2], len(token), token),
    )
