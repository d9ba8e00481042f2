"""What one field of a data file says: a name, or a number to its last digit.

No whole number passes through a float: a float keeps 53 bits, and nanoseconds since 1970 take 61.
"""

from __future__ import annotations

import re
from array import array
from decimal import Context, Decimal
from typing import Any

import numpy as np

SHOWN_CHARACTERS = 80  # of a wrong value
# Half a character, as JSON's \ud83d alone: no text file can hold it.
SURROGATES = re.compile("[\ud800-\udfff]")
NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII
)  # with an exponent that Decimal takes
# How spreadsheets and data frames write a large number that they hold as a float: 1.23457E+12.
FLOATED_NAME = re.compile(r"[+-]?\d+\.\d+[eE]\+?\d+", re.ASCII)
LEAST, MOST = -(2**63), 2**63 - 1  # of an int64
WHOLE_FLOATS = 2**53  # from here on a float64 does not hold every whole number
FRACTION_DIGITS = 18  # after the point: as many as an int64 holds
LOST = "has lost its last digits in a float; write the whole number"
EXACT = Context(prec=len(str(MOST)) + FRACTION_DIGITS)


def name_of(value: Any, column: str) -> str:
    """A user's or an item's name, without spaces around it. ValueError for what is none, or has
    lost digits."""
    if isinstance(value, str):
        value = value.strip()
    elif isinstance(value, Decimal) and value.is_finite() and value.as_tuple().exponent == 0:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{column}: expected a name or a whole number, got {_shown(value)}")
    name = str(value)
    if "." in name and FLOATED_NAME.fullmatch(name):
        raise ValueError(f"{column}: {_shown(value)} {LOST}, or text")
    if not name.isascii() and SURROGATES.search(name):
        raise ValueError(f"{column}: expected Unicode text, got {ascii(name)[:SHOWN_CHARACTERS]}")
    return name


def number_of(value: Any, column: str) -> int | Decimal:
    """The number as it is written; a Decimal where it has a fraction. ValueError where it is none,
    or not exact."""
    is_text, is_float = isinstance(value, str), isinstance(value, float)
    # Nearly all are one of these two.
    if type(value) is int and LEAST <= value <= MOST:
        return value
    if is_text and len(value) < FRACTION_DIGITS and value.isascii() and value.isdigit():
        return int(value)
    is_number = (
        is_text or is_float or type(value) in (int, Decimal)
    )  # and not bool, which is an int
    text = repr(value) if is_float else str(value).strip()
    if not is_number or not NUMBER.fullmatch(text):
        raise ValueError(f"{column}: expected a number, got {_shown(value)}")
    number = Decimal(text)
    exponent = int(number.as_tuple().exponent)
    if exponent > 0 or (is_float and abs(value) >= WHOLE_FLOATS):
        raise ValueError(f"{column}: {_shown(value)} {LOST}")
    if not LEAST <= number <= MOST:
        raise ValueError(f"{column}: expected a number below 2**63, got {_shown(value)}")
    whole = number.to_integral_value(context=EXACT)
    if number == whole:
        return int(whole)
    if exponent < -FRACTION_DIGITS:
        raise ValueError(
            f"{column}: expected at most {FRACTION_DIGITS} digits after the point, "
            f"got {_shown(value)}"
        )
    return number


class Times:
    """Exact times: 8 bytes each, 16 where one of them has a fraction."""

    def __init__(self) -> None:
        self.wholes = array("q")
        self.fractions = array("q")  # FRACTION_DIGITS digits of each; empty until one is not 0

    def append(self, time: int | Decimal) -> None:
        """A time as number_of gives it."""
        if isinstance(time, int) and not self.fractions:
            self.wholes.append(time)
            return
        if not self.fractions:
            self.fractions.frombytes(bytes(8 * len(self.wholes)))
        scaled = int(Decimal(time).scaleb(FRACTION_DIGITS, EXACT))
        whole, fraction = divmod(scaled, 10**FRACTION_DIGITS)
        self.wholes.append(whole)
        self.fractions.append(fraction)

    def sort_keys(self) -> list[np.ndarray]:
        """For np.lexsort, the most important last: int64 [times] each, views."""
        return [np.frombuffer(times, np.int64) for times in (self.fractions, self.wholes) if times]


def _shown(value: Any) -> str:
    return (str(value) if isinstance(value, Decimal) else repr(value))[:SHOWN_CHARACTERS]
