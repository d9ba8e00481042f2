"""What a setting is: a field with a default, a help text and the values it may have; and how such a
value is read.

A value is read as its field's type says, whether it stands on the command line, in a recipe or in a
grid. A field of text takes the text to the letter. Elsewhere text must be a number, true or false,
or, where a list or a mapping is meant, begin with [ or {.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ilrec.errors import InputError
from ilrec.files.plain_yaml import NUMBER, WHOLE_NUMBER, parse_yaml

# In any case. The words of YAML 1.1, and of Hugging Face's parser but for its single letters.
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
# Libraries keep whole numbers in 32 bits here and there (NumPy's seeds, CUDA's indices); no setting
# needs a larger one.
LARGEST_WHOLE = 2**31 - 1
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
        if self.choices:
            return value in self.choices
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
    """One setting: its default, the line that documents it, and the values it may have."""
    metadata = {"help": help, "domain": Domain(choices, at_least, above, below)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """A dataclass of settings. Each is read as its type says and held to its domain when the object
    is made.

    Raises InputError, which begins with the field's name.
    """

    def __post_init__(self) -> None:
        for name in hints_of(type(self)):
            setattr(self, name, read_field(type(self), name, getattr(self, name)))


def hints_of(cls: type) -> dict[str, Any]:
    """{field: type}"""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def read_field(cls: type, name: str, value: Any) -> Any:
    """The value as the field's type says, within its domain; InputError, which begins with the
    field's name, where it does not fit."""
    domain = cls.__dataclass_fields__[name].metadata["domain"]  # type: ignore[attr-defined]
    return read_within(name, value, hints_of(cls)[name], domain)


def read_within(name: str, value: Any, hint: Any, domain: Domain) -> Any:
    """The value in the type `hint`, within its domain. Raises InputError, which begins with `name`,
    if it does not fit."""
    try:
        read = read_value(value, hint)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
    else:
        if domain.holds(read):
            return read
        reason = ""
    require(False, name, value, _expected(hint, domain) + reason, _mend(value, hint, name, domain))


def require(condition: bool, name: str, value: object, expected: str, mend: str = "") -> None:
    if not condition:
        shown = repr(value)
        raise InputError(
            f"{name}: expected {expected}, got {shown if len(shown) <= 100 else shown[:100] + '...'}{mend}"
        )


def read_value(value: Any, hint: Any) -> Any:
    """`value` in a type: text, number, bool, list[str], dict, or a union of them. ValueError where
    it does not fit."""
    kinds = [
        typing.get_origin(kind) or kind
        for kind in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
    ]
    if isinstance(value, str):
        return _from_text(value, hint, kinds)
    if type(value) is int and float in kinds:
        value = _as_float(value)
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    if type(value) is int and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"at most {LARGEST_WHOLE}")
    if isinstance(value, list):
        return [read_value(element, str) for element in value]
    return value


def _from_text(text: str, hint: Any, kinds: list[type]) -> Any:
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
    if (
        int in kinds and WHOLE_NUMBER.fullmatch(text) and len(text) < 20
    ):  # int() refuses thousands of digits
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
    """No path may hold a NUL, and no file half a character (a lone surrogate, as Python keeps bytes
    that are not UTF-8)."""
    if (
        "\0" in text
        or not text.isascii()
        and any("\ud800" <= character <= "\udfff" for character in text)
    ):
        raise ValueError("in UTF-8 and without NUL characters")


def _expected(hint: Any, domain: Domain) -> str:
    if domain.choices:
        return "one of " + ", ".join(domain.choices)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join([KINDS[typing.get_origin(option) or option] for option in options]) + (
        f", {domain}" if str(domain) else ""
    )


def _mend(value: Any, hint: Any, name: str, domain: Domain) -> str:
    """What to do about it, where that is not plain from what was expected."""
    if domain.choices:
        close = difflib.get_close_matches(str(value), domain.choices, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""
    takes_text = hint is str or str in typing.get_args(hint)
    if takes_text and isinstance(value, (bool, int, float)):
        return f'; YAML takes it for {KINDS[type(value)]}: write text in quotes, {name}: "..."'
    return ""


def nearest(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return (
        f"; did you mean {close[0]!r}?" if close else f"; known fields: {', '.join(sorted(known))}"
    )
