"""Dates of a time split, and the messages about wrong ones."""

from __future__ import annotations

import pytest

from ilrec.config.dates import split_dates
from ilrec.config.sections import DataConfig
from ilrec.errors import InputError


def test_dates_by_hand():
    """1970-01-02 is one day of 86,400 seconds after the beginning. 01:00 at +02:00 is 23:00 of the
    day before in UTC."""
    assert split_dates("1970-01-02") == [86_400]
    assert split_dates("1970-01-02,1970-01-02T00:01") == [86_400, 86_460]
    assert split_dates("1970-01-02T01:00+02:00") == [82_800]


@pytest.mark.parametrize(
    "text", ["soon", "2023", "2023-02-30", "2023-01-02,2023-01-01", "2023-01-01,2023-01-01", ","]
)
def test_wrong_dates(text: str):
    with pytest.raises(InputError, match="^split_time: expected a date such as 2023-01-01, or two"):
        DataConfig(split_time=text)


def test_one_rule_at_a_time():
    with pytest.raises(InputError, match="^num_targets: expected 1 with split_time"):
        DataConfig(split_time="2023-01-01", num_targets=2)
