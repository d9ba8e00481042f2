"""Fields: names as they are written, numbers to the last digit. What has lost digits on the way is
refused."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec.interactions.fields import LEAST, MOST, Times, name_of, number_of

FRACTIONS = st.decimals(-(10**12), 10**12, allow_nan=False, allow_infinity=False, places=18)
NUMBERS = st.integers(LEAST, MOST) | FRACTIONS


@settings(deadline=None, derandomize=True, database=None)
@given(NUMBERS, st.sampled_from([str, Decimal]))
def test_numbers_are_exact(number, kind):
    read = number_of(kind(number), "t")
    assert read == number
    assert isinstance(read, int) == (number == int(number))


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(NUMBERS))
def test_times_are_sorted_as_numbers_are(numbers):
    """Whole numbers, or numbers with a fraction, or both. Equal ones stay in their order."""
    times = Times()
    for number in numbers:
        times.append(number_of(str(number), "t"))
    keys = times.sort_keys()
    order = np.lexsort(keys or [np.empty(0)]).tolist()
    assert order == sorted(range(len(numbers)), key=numbers.__getitem__)
    # The second key is there only if some number has a fraction.
    if numbers:
        assert len(keys) == 1 + any(number != int(number) for number in numbers)


@pytest.mark.parametrize("parts", [1, 10**3, 10**6, 10**9])
def test_times_of_any_unit_become_seconds(parts: int):
    """The largest one, of the year 2023, says what the unit is, also for those of
    1970. Seconds are rounded down."""
    times = Times()
    for seconds in (0, 5, 1_700_000_000):
        times.append(number_of(f"{seconds * parts + parts - 1}.5", "t"))
    assert times.seconds().tolist() == [0, 5, 1_700_000_000]


@pytest.mark.parametrize(
    "number", [1.0, 1e15, 0.5, 9.5e-5, "1.0", " 7 ", "1.425124800e9", "9.5e-05", "+3", ".5", "5."]
)
def test_numbers_in_other_forms(number):
    expected = repr(number) if isinstance(number, float) else number
    assert number_of(number, "t") == Decimal(expected)


@pytest.mark.parametrize("number", [1.7e18, 2.0**53, "1.7e+18", "1.5E+12", Decimal("1.7e18")])
def test_lost_digits_are_refused(number):
    """A float of nanoseconds: as a number, in JSON, and as spreadsheets and data frames write
    it."""
    message = "t: .* has lost its last digits in a float; write the whole number"
    with pytest.raises(ValueError, match=message):
        number_of(number, "t")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2**63, r"expected a number below 2\*\*63, got 9223372036854775808"),
        ("0." + "1" * 19, "expected at most 18 digits after the point"),
        ("1e-999999999", "18 digits"),
        ("1_000", "expected a number, got '1_000'"),
        ("\u0663", "expected a number"),
        ("1e999999999", "has lost"),
        (None, "expected a number, got None"),
        (True, "expected a number, got True"),
        ("", "expected a number, got ''"),
        (float("nan"), "expected a number, got nan"),
        (Decimal("nan"), "expected a number, got NaN"),
        ([0, [1], 0], "expected a number"),
        ("1e" + "9" * 20, "expected a number"),
    ],
)
def test_what_is_no_number(number, message):
    with pytest.raises(ValueError, match=f"^t: .*{message}"):
        number_of(number, "t")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("07", "07"),
        (7, "7"),
        (12345678901234567890, "12345678901234567890"),
        (Decimal("7"), "7"),
        ("1e5", "1e5"),
        ("12e4567", "12e4567"),
        ("123.0", "123.0"),
        (" a b ", "a b"),
        ('"a', '"a'),
    ],
)
def test_names_are_as_they_are_written(value, name):
    assert name_of(value, "i") == name


@pytest.mark.parametrize(
    "value", [1.0, Decimal("1.0"), Decimal("1e5"), Decimal("nan"), None, True, " ", ["a"], b"a"]
)
def test_what_is_no_name(value):
    """1.0 is what data frames make of a whole number in a column where some are missing."""
    with pytest.raises(ValueError, match="^i: expected a name or a whole number, got "):
        name_of(value, "i")


@pytest.mark.parametrize("text", ["1.2345678901234568e+19", "1.23457E+12", "-1.5e9"])
def test_names_that_went_through_a_float(text):
    with pytest.raises(ValueError, match="^i: .* has lost its last digits in a float"):
        name_of(text, "i")
