"""Codes of semantic IDs as tokens of a tokenizer: one code, one token, known by its number.

Codes are never written as text and tokenized again. A normalizer would rewrite them, and codes that
are words already would run together ("1", "23" and "12", "3"), without any error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from ilrec.errors import InputError

# What no code may be: the end token would end an item early, and the others are masked or have no
# meaning of their own.
ROLES = ("eos_token", "bos_token", "pad_token", "unk_token")


def add_codes(tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]) -> int:
    """Make a token of each code that the vocabulary lacks. Returns how many were added.

    A code that is a token already, such as a plain number, stays what it is: as an added token it
    would be cut out of every text.
    """
    vocabulary = tokenizer.get_vocab()
    new = [code for code in codes if code not in vocabulary]
    if new:
        # First, so that no new token gets the number of an old one.
        _fill_holes(tokenizer)
        tokenizer.add_tokens([_code_token(code) for code in new])
    return len(new)


def _code_token(code: str) -> AddedToken:
    """A token that every tokenizer finds in a text as it stands.

    It is not special, because servers leave special tokens out of their answers.
    """
    return AddedToken(
        code, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False
    )


def code_ids(tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]) -> dict[str, int]:
    """{code: token number}. Raises InputError if a code has no number of its own."""
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
        token = getattr(tokenizer, role)
        if token in numbers:
            raise InputError(
                f"semantic IDs: the code {token!r} is the tokenizer's {role}; expected codes that "
                "mean nothing else: give it another name in *.index.json"
            )

    # A tokenizer that some other program extended may have two tokens on one number.
    wanted = set(numbers.values())
    owners: dict[int, str] = {}
    for token, number in vocabulary.items():
        if number in wanted and owners.setdefault(number, token) != token:
            one, other = sorted((token, owners[number]))
            raise InputError(
                f"tokenizer: {one!r} and {other!r} have the same number, {number}; expected one "
                "for each semantic-ID token: train again from the base's own tokenizer"
            )
    return numbers


def _fill_holes(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a name to each number that no token has.

    The library numbers a new token by the count of tokens. If numbers are unused, that is the
    number of an old token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    taken = set(tokenizer.get_vocab().values())
    holes = [number for number in range(max(taken)) if number not in taken]
    if backend is None or not holes:
        return
    state = json.loads(backend.to_str())
    state["model"]["vocab"] |= {f"<unused number {number}>": number for number in holes}
    # There is no public way to exchange the backend.
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))  # type: ignore[attr-defined]
