"""Codes of semantic IDs as tokens of a tokenizer: one code, one token, known by its number.

Codes are never written as text and tokenized again: a normalizer would rewrite them, and codes that
are words already would run together ("1", "23" and "12", "3"). Nothing would say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from ilrec.errors import InputError

# What no code may be: the end token would end an item early, the others are masked or mean nothing.
ROLES = ("eos_token", "bos_token", "pad_token", "unk_token")


def add_codes(tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]) -> int:
    """Make a token of each code that the vocabulary lacks. Returns how many these are.

    A code that is a token already, a plain number say, stays what it is: an added token would be
    cut out of every text.
    """
    vocabulary = tokenizer.get_vocab()
    new = [code for code in codes if code not in vocabulary]
    if new:
        _fill_holes(tokenizer)
        # Any tokenizer that reads a text takes them as they stand. They are not special, because
        # servers leave special tokens out of their answers.
        tokenizer.add_tokens(
            [
                AddedToken(
                    code,
                    single_word=False,
                    lstrip=False,
                    rstrip=False,
                    normalized=False,
                    special=False,
                )
                for code in new
            ]
        )
    return len(new)


def code_ids(tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]) -> dict[str, int]:
    """{code: token number}, each number one code's alone. InputError where it is not so."""
    vocabulary = tokenizer.get_vocab()
    unknown = [code for code in codes if code not in vocabulary]
    if unknown:
        raise InputError(
            f"tokenizer: {len(unknown)} of {len(codes)} semantic-ID tokens are unknown to it, "
            f"first {unknown[0]!r}; use the tokenizer and the semantic IDs that the model was "
            "trained with"
        )
    numbers = {code: vocabulary[code] for code in codes}
    for role in ROLES:
        if (token := getattr(tokenizer, role)) in numbers:
            raise InputError(
                f"semantic IDs: the code {token!r} is the tokenizer's {role}; expected codes that "
                "mean nothing else: give it another name in *.index.json"
            )
    wanted, owners = set(numbers.values()), dict[int, str]()
    for token, number in vocabulary.items():
        if number in wanted and owners.setdefault(number, token) != token:
            one, other = sorted((token, owners[number]))
            raise InputError(
                f"tokenizer: {one!r} and {other!r} have the same number, {number}; expected one "
                "for each semantic-ID token: train again from the base's own tokenizer"
            )
    return numbers


def _fill_holes(tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the numbers that no token has.

    The library numbers a new token by how many there are: with holes, that is an old one's number.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    taken = set(tokenizer.get_vocab().values())
    holes = [number for number in range(max(taken)) if number not in taken]
    if backend is None or not holes:
        return
    state = json.loads(backend.to_str())
    state["model"]["vocab"] |= {f"<unused number {number}>": number for number in holes}
    # There is no public way to exchange it.
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
