"""What one field of a data file holds: a name, or a number that is exact to its last digit.

No whole number passes through a float, because a float keeps 53 bits and a time in nanoseconds
since 1970 takes 61.
"""

from __future__ import annotations

import logging
import re
from array import array
from decimal import Context, Decimal
from typing import Any

import numpy as np

# A message shows this many characters of a wrong value.
SHOWN_CHARACTERS = 80
# Half a character, as JSON can spell it (\ud83d alone). No text file can hold it.
SURROGATES = re.compile("[\ud800-\udfff]")
# The exponent has at most nine digits, because Decimal refuses a longer one.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
# Spreadsheets and data frames write a large number that they hold as a float like this:
# 1.23457E+12.
FLOATED_NAME = re.compile(r"[+-]?\d+\.\d+[eE]\+?\d+", re.ASCII)
# The smallest and the largest int64.
LEAST, MOST = -(2**63), 2**63 - 1
# From here on a float64 does not hold every whole number.
WHOLE_FLOATS = 2**53
# Digits after the point that are kept: as many as fit into an int64.
FRACTION_DIGITS = 18
LOST = "has lost its last digits in a float; write the whole number"
EXACT = Context(prec=len(str(MOST)) + FRACTION_DIGITS)
# (unit of a time stamp, its parts of a second, from which number on it is taken for that unit).
# 10**11 seconds are the year 5138, and 10**11 milliseconds are March 1973.
UNITS = (
    ("nanoseconds", 10**9, 10**17),
    ("microseconds", 10**6, 10**14),
    ("milliseconds", 10**3, 10**11),
)
logger = logging.getLogger(__name__)


def name_of(value: Any, column: str) -> str:
    """The name of a user or an item, without the spaces around it.

    Raises ValueError if the value is no name, or a number that has lost digits.
    """
    if isinstance(value, str):
        value = value.strip()
    elif isinstance(value, Decimal) and _is_whole_as_written(value):
        value = int(value)

    # A bool is an int in Python, but it names nobody.
    is_text_or_whole = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_text_or_whole or value == "":
        raise ValueError(f"{column}: expected a name or a whole number, got {_shown(value)}")

    name = str(value)
    if "." in name and FLOATED_NAME.fullmatch(name):
        raise ValueError(f"{column}: {_shown(value)} {LOST}, or text")
    if not name.isascii() and SURROGATES.search(name):
        raise ValueError(f"{column}: expected Unicode text, got {ascii(name)[:SHOWN_CHARACTERS]}")
    return name


def _is_whole_as_written(value: Decimal) -> bool:
    """Whether the number was written without a point and without an exponent."""
    return value.is_finite() and value.as_tuple().exponent == 0


def number_of(value: Any, column: str) -> int | Decimal:
    """The number as it is written: an int, or a Decimal if it has a fraction.

    Raises ValueError if the value is no number, or not exact, or too large for an int64.
    """
    # A fast way for nearly all values: an int, or a short text of digits.
    if type(value) is int and LEAST <= value <= MOST:
        return value
    if isinstance(value, str) and len(value) < FRACTION_DIGITS:
        if value.isascii() and value.isdigit():
            return int(value)

    # A positive exponent (1.7e18) is how a float that has lost its last digits is written.
    number = _decimal_of(value, column)
    exponent = int(number.as_tuple().exponent)
    is_large_float = isinstance(value, float) and abs(value) >= WHOLE_FLOATS
    if exponent > 0 or is_large_float:
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


def _decimal_of(value: Any, column: str) -> Decimal:
    """The value as the number that its text spells. Raises ValueError if it spells none."""
    # type() and not isinstance(): a bool is an int, but no number of a file.
    is_number = isinstance(value, (str, float)) or type(value) in (int, Decimal)
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if not is_number or not NUMBER.fullmatch(text):
        raise ValueError(f"{column}: expected a number, got {_shown(value)}")
    return Decimal(text)


class Times:
    """Exact times. Each takes 8 bytes, or 16 as soon as one of them has a fraction."""

    def __init__(self) -> None:
        self.wholes = array("q")
        # The FRACTION_DIGITS digits after the point of each time. Empty until one of them is not 0.
        self.fractions = array("q")

    def append(self, time: int | Decimal) -> None:
        """Add a time as number_of returns it."""
        if isinstance(time, int) and not self.fractions:
            self.wholes.append(time)
            return

        # The first time with a fraction: all times before it get the fraction 0.
        if not self.fractions:
            self.fractions.frombytes(bytes(8 * len(self.wholes)))
        scaled = int(Decimal(time).scaleb(FRACTION_DIGITS, EXACT))
        whole, fraction = divmod(scaled, 10**FRACTION_DIGITS)
        self.wholes.append(whole)
        self.fractions.append(fraction)

    def seconds(self) -> np.ndarray:
        """int64 [times]: whole seconds, rounded down. The unit is what the largest time tells, for
        all times together."""
        wholes = np.frombuffer(self.wholes, np.int64)
        largest = int(wholes.max(initial=0))
        for unit, parts, least in UNITS:
            if largest >= least:
                logger.info("time stamps up to %d are taken for %s", largest, unit)
                return wholes // parts
        return wholes

    def sort_keys(self) -> list[np.ndarray]:
        """Keys for np.lexsort, the most important one last: int64 [times] each, not copied."""
        parts = (self.fractions, self.wholes)
        return [np.frombuffer(part, np.int64) for part in parts if part]


def _shown(value: Any) -> str:
    """The value as a message shows it."""
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text[:SHOWN_CHARACTERS]
