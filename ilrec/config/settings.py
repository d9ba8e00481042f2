"""What a setting is: a field with a default, a help text and the values it may have; and how a
value is read.

A value is read as its field's type says, no matter if it comes from the command line, a recipe or
a grid of experiments. A text field takes the text exactly as it is. For other fields the text must
be a number, true or false. If a list or a mapping is meant, it must begin with [ or {.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ilrec.errors import InputError
from ilrec.files.plain_yaml import NUMBER, WHOLE_NUMBER, parse_yaml

# Upper or lower case. These are the words of YAML 1.1. Hugging Face's parser has the same ones and
# single letters, which are not taken here.
BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# Libraries keep some whole numbers in 32 bits (NumPy's seeds, CUDA's indices). No setting needs a
# larger one.
LARGEST_WHOLE = 2**31 - 1
# int() refuses texts of thousands of digits. Longer texts than this are far beyond LARGEST_WHOLE.
LONGEST_WHOLE = 19
# How alike two names must be (difflib's ratio) for one to be suggested in place of the other. At
# 0.75, one letter of three or two of eight may be wrong, and `packing` does not suggest `backend`.
NEAR = 0.75
# A message lists no more names than this.
MOST_LISTED = 15
# How much of a wrong value a message shows.
LONGEST_SHOWN = 100
KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list such as [a, b]",
    dict: "a mapping such as {a: 1}",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class Domain:
    """The values that a field may have, beyond its type. None: no limit."""

    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        """For a list: whether each of its elements is one of the choices."""
        if value is None:
            return True  # The type says whether there may be no value.
        if self.choices:
            elements = value if isinstance(value, list) else [value]
            return all(element in self.choices for element in elements)
        limits = (
            (operator.ge, self.at_least),
            (operator.gt, self.above),
            (operator.lt, self.below),
        )
        return all(limit is None or compare(value, limit) for compare, limit in limits)

    def __str__(self) -> str:
        words = ((self.at_least, "{} or more"), (self.above, "above {}"), (self.below, "below {}"))
        return " and ".join(text.format(limit) for limit, text in words if limit is not None)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """One setting: its default, a help text, and the values it may have.

    `--help` and docs/fields.md are made from it (reference.py).
    """
    metadata = {"help": help, "domain": Domain(choices, at_least, above, below)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """The parent class of a dataclass of settings.

    When an object is made, each value is read as its field's type says and must lie in its domain.
    Raises InputError, whose text begins with the field's name.
    """

    def __post_init__(self) -> None:
        for name in hints_of(type(self)):
            setattr(self, name, read_field(type(self), name, getattr(self, name)))


def hints_of(cls: type) -> dict[str, Any]:
    """{field: type}"""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def read_field(cls: type, name: str, value: Any) -> Any:
    """The value, read as the field's type says.

    Raises InputError, whose text begins with the field's name, if the value has another type or
    lies outside the field's domain.
    """
    domain = cls.__dataclass_fields__[name].metadata["domain"]  # type: ignore[attr-defined]
    return read_within(name, value, hints_of(cls)[name], domain)


def read_within(name: str, value: Any, hint: Any, domain: Domain) -> Any:
    """The value in the type `hint`, within its domain. Raises InputError, which begins with `name`,
    if it does not fit."""
    reason = ""
    try:
        read = read_value(value, hint)
        if domain.holds(read):
            return read
    except ValueError as error:
        if str(error):
            reason = f" ({error})"
    require(False, name, value, _expected(hint, domain) + reason, _mend(value, hint, name, domain))


def require(condition: bool, name: str, value: object, expected: str, mend: str = "") -> None:
    """Raises InputError about the field `name` if the condition does not hold.

    expected: what the value should be. mend: advice that follows it, with its separator.
    """
    if condition:
        return
    shown = repr(value)
    if len(shown) > LONGEST_SHOWN:
        shown = shown[:LONGEST_SHOWN] + "..."
    raise InputError(f"{name}: expected {expected}, got {shown}{mend}")


def read_value(value: Any, hint: Any) -> Any:
    """`value` as a type: text, number, bool, list[str], dict, or a union of them.

    Raises ValueError, sometimes with a reason, if it does not fit.
    """
    kinds = _kinds_of(hint)
    if isinstance(value, str):
        return _from_text(value, hint, kinds)

    # `beta: 1` in a recipe is a whole number, and a number is wanted.
    if type(value) is int and float in kinds:
        value = _as_float(value)

    # The exact type counts, because a bool is an int to isinstance.
    if type(value) not in kinds:
        raise ValueError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if type(value) is int and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"at most {LARGEST_WHOLE}")
    if isinstance(value, list):
        return [read_value(element, str) for element in value]
    return value


def type_words(cls: type, name: str) -> str:
    """What a field takes, in words: `a whole number, 1 or more`."""
    domain = cls.__dataclass_fields__[name].metadata["domain"]  # type: ignore[attr-defined]
    return _expected(hints_of(cls)[name], domain)


def default_words(cls: type, name: str) -> str:
    """A field's default as a recipe would give it; `""` for empty text."""
    value = getattr(cls(), name)
    return value if value and isinstance(value, str) else json.dumps(value)


def nearest(name: object, known: Iterable[str]) -> str:
    """Advice for an unknown name: the known one that it resembles, or where all are to be found."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=NEAR)
    if close:
        return f"; did you mean {close[0]!r}?"
    if len(names) > MOST_LISTED:
        return "; --help and docs/fields.md list all fields"
    return f"; known fields: {', '.join(names)}"


def _kinds_of(hint: Any) -> list[type]:
    """The plain types of a hint: [str, list] for `str | list[str]`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [typing.get_origin(option) or option for option in options]


def _from_text(text: str, hint: Any, kinds: list[type]) -> Any:
    # Brackets come first: a field of text or list takes `[a, b]` for a list.
    for kind, bracket in ((list, "["), (dict, "{")):
        if kind in kinds and text.startswith(bracket):
            return read_value(parse_yaml(text), hint)
    if str in kinds:
        _check_writable(text)
        return text
    if types.NoneType in kinds and text == "null":
        return None
    if bool in kinds and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if int in kinds and WHOLE_NUMBER.fullmatch(text) and len(text) <= LONGEST_WHOLE:
        return read_value(int(text), int)
    if float in kinds and NUMBER.fullmatch(text):
        return read_value(float(text), float)
    raise ValueError


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError from None


def _check_writable(text: str) -> None:
    """Raises ValueError for text that no path or no file can hold.

    No path can hold a NUL. No file in UTF-8 can hold half a character (a lone surrogate, as Python
    keeps bytes of the command line that are not UTF-8).
    """
    has_half = any("\ud800" <= character <= "\udfff" for character in text)
    if "\0" in text or has_half:
        raise ValueError("in UTF-8 and without NUL characters")


def _expected(hint: Any, domain: Domain) -> str:
    """What a field takes, in words: `a whole number, 1 or more`."""
    if domain.choices:
        several = f", or {KINDS[list]} of them" if list in _kinds_of(hint) else ""
        return f"one of {', '.join(domain.choices)}{several}"
    kinds = " or ".join([KINDS[kind] for kind in _kinds_of(hint)])
    return f"{kinds}, {domain}" if str(domain) else kinds


def _mend(value: Any, hint: Any, name: str, domain: Domain) -> str:
    """Advice beyond what was expected, or an empty text."""
    if domain.choices:
        close = difflib.get_close_matches(str(value), domain.choices, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""
    takes_text = hint is str or str in typing.get_args(hint)
    if takes_text and isinstance(value, (bool, int, float)):
        return f'; YAML takes it for {KINDS[type(value)]}: write text in quotes, {name}: "..."'
    return ""
