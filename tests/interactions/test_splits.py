"""Who is trained on what and measured with what: by hand, and for every drawn data set."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import write_inter, write_json

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.reading import read_data, read_interactions
from ilrec.interactions.splits import LEAVE_ONE_OUT, SplitRule, Splits, split_interactions

DAY = 86_400


def by_order(sequences: list[list[int]], num_targets: int) -> Splits:
    return split_interactions(Ragged.from_rows(sequences), None, SplitRule(num_targets, ""))


def by_time(sequences: list[list[int]], days: list[list[int]], split_time: str) -> Splits:
    """days: of each item, counted from the first of January 1970."""
    times = Ragged.from_rows([[DAY * day for day in row] for row in days], np.int64)
    return split_interactions(Ragged.from_rows(sequences), times, SplitRule(1, split_time))


def rows(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


def shown(cases: Cases) -> list[tuple[int, list[int], list[int]]]:
    """(user, history, targets) of each case."""
    return list(zip(cases.users.tolist(), rows(cases.histories), rows(cases.targets), strict=True))


def test_two_targets_of_each_user_one_after_the_other():
    """User 1 has four items, and two targets of each kind need five."""
    splits = by_order([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [5, 4, 3, 2, 1]], num_targets=2)
    assert rows(splits.training) == [[0, 1], [], [5]]
    assert shown(splits.cases["valid"]) == [
        (0, [0, 1], [2]),
        (0, [0, 1, 2], [3]),
        (2, [5], [4]),
        (2, [5, 4], [3]),
    ]
    assert shown(splits.cases["test"]) == [
        (0, [0, 1, 2, 3], [4]),
        (0, [0, 1, 2, 3, 4], [5]),
        (2, [5, 4, 3], [2]),
        (2, [5, 4, 3, 2], [1]),
    ]
    assert splits.cases["test"].next_items().tolist() == [4, 5, 2, 1]
    assert splits.facts["test"] == {"num_targets": 2}
    assert "1 of 3 users left out, because they have fewer than 5 items" in splits.report


def test_one_date():
    """The test begins on 1970-01-11, which is day 10.

    User 0: items 0 and 1 are before it, and item 1 is for validation. Items 2 and 3 are targets
    together. User 1 has a single item before the date, which stays for training. User 2 is new.
    User 3 has nothing from the date on. The training shows 0, 5, 0; so of the targets 2, 3 and 5
    the items 2 and 3 are new.
    """
    splits = by_time(
        sequences=[[0, 1, 2, 3], [5, 5], [4, 0], [0, 4]],
        days=[[1, 9, 10, 12], [2, 11], [10, 11], [3, 4]],
        split_time="1970-01-11",
    )
    assert rows(splits.training) == [[0], [5], [], [0]]
    assert shown(splits.cases["valid"]) == [(0, [0], [1]), (3, [0], [4])]
    assert shown(splits.cases["test"]) == [(0, [0, 1], [2, 3]), (1, [5], [5])]
    assert splits.facts["test"] == {
        "split_time": "1970-01-11",
        "num_new_users": 1,
        "num_new_items": 2,
        "num_new_item_targets": 2,
    }
    assert "3 interactions to train on, 2 test users; 1 users have nothing before" in splits.report
    assert "2 of 3 test targets are items that training never shows (2 items)" in splits.report


def test_two_dates():
    """Validation begins on day 5 and the test on day 10. User 1 is new to both, and user 2 to the
    validation alone: what the user has there is history in the test."""
    splits = by_time(
        sequences=[[0, 1, 2, 3], [0, 1], [1, 0]],
        days=[[1, 5, 9, 10], [11, 12], [6, 10]],
        split_time="1970-01-06, 1970-01-11",
    )
    assert rows(splits.training) == [[0], [], []]
    assert shown(splits.cases["valid"]) == [(0, [0], [1, 2])]
    assert shown(splits.cases["test"]) == [(0, [0, 1, 2], [3]), (2, [1], [0])]
    assert splits.facts["valid"]["num_new_users"] == 1
    assert splits.facts["test"]["num_new_users"] == 1


@pytest.mark.parametrize(
    ("split_time", "message"),
    [
        ("1970-01-02", "no user has a valid target and an item before it"),
        ("1970-02-01", "no user has a test target and .* go from 1970-01-02.* to 1970-01-04"),
    ],
)
def test_dates_that_leave_a_split_empty(split_time: str, message: str):
    with pytest.raises(InputError, match=f"split_time: {split_time}: {message}"):
        by_time([[0, 1, 2]], [[1, 2, 3]], split_time)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """(items, days) of some users. Each day is between 0 and 30, and times do not fall."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    items = [[draw(st.integers(0, 9)) for _ in range(length)] for length in lengths]
    days = [sorted(draw(st.integers(0, 30)) for _ in range(length)) for length in lengths]
    return items, days


@settings(deadline=None, derandomize=True, database=None)
@given(histories(), st.integers(1, 29), st.integers(0, 20))
def test_a_split_by_time_never_looks_ahead(drawn, first: int, gap: int):
    """Against one loop over all interactions: what is before the first date is trained on (or is
    the validation's only target), and each later item of a known user is a target once."""
    sequences, days = drawn
    last = min(first + gap, 30)
    dates = [str(np.datetime64(day, "D")) for day in sorted({first, last})]
    try:
        splits = by_time(sequences, days, ",".join(dates))
    except InputError:
        return
    for user, row in enumerate(days):
        before = sum(day < first for day in row)
        trained = rows(splits.training)[user]
        held_out = 1 if len(dates) == 1 and before >= 2 else 0
        assert trained == sequences[user][: before - held_out]

    known = {}
    for user, row in enumerate(days):
        num_before = sum(day < last for day in row)
        if 0 < num_before < len(row):
            known[user] = (sequences[user][:num_before], sequences[user][num_before:])
    assert {user: (old, new) for user, old, new in shown(splits.cases["test"])} == known


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 4))
def test_a_split_by_order_has_each_item_once(lengths: list[int], num_targets: int):
    """Items are named by their places. Training, validation and test follow one another."""
    sequences = [list(range(length)) for length in lengths]
    kept = [user for user, length in enumerate(lengths) if length > 2 * num_targets]
    if not kept:
        with pytest.raises(InputError, match=f"at least {2 * num_targets + 1} items"):
            by_order(sequences, num_targets)
        return
    splits = by_order(sequences, num_targets)
    found = {user: rows(splits.training)[user] for user in kept}
    for split in ("valid", "test"):
        for user, history, targets in shown(splits.cases[split]):
            assert history == found[user]
            found[user] = found[user] + targets
    assert found == {user: sequences[user] for user in kept}
    left_out = set(range(len(lengths))) - set(kept)
    assert all(rows(splits.training)[user] == [] for user in left_out)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (LEAVE_ONE_OUT, "leave-one-out. Each user's last item is for the test"),
        (SplitRule(3, ""), "Each user's last 3 items are for the test, the 3 before them"),
        (SplitRule(1, "2020-01-02"), "Items from 2020-01-02 on are for the test; the last item"),
        (SplitRule(1, "2020-01-02,2020-02-01"), "before 2020-01-02; .* from 2020-02-01 on for the"),
    ],
)
def test_the_rule_in_words(rule: SplitRule, words: str):
    assert re.search(words, rule.in_words())


def test_settings_decide_the_split_of_a_directory(tmp_path: Path):
    """RecBole files have times: seconds, here of 2022 and 2023."""
    stamps = [1_640_995_200 + 90 * DAY * number for number in range(6)]
    write_inter(tmp_path, [("u", f"{item}", stamp) for item, stamp in enumerate(stamps)])
    config = DataConfig(data=str(tmp_path), k_core=0, split_time="2023-01-01")
    cases = read_data(config).evaluation("test")
    assert shown(cases) == [(0, [0, 1, 2, 3, 4], [5])]
    config = dataclasses.replace(config, split_time="", num_targets=2)
    assert len(read_data(config).evaluation("test")) == 2


def test_data_without_times(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"u": [0, 1, 2, 3]})
    message = f"{tmp_path}: split_time: 2023-01-01: this data has no time stamps; prepare it again"
    with pytest.raises(InputError, match=message):
        read_interactions(tmp_path, 0, SplitRule(1, "2023-01-01"))


def test_the_rule_changes_no_number_and_no_fingerprint(tmp_path: Path):
    """Whatever is cached for the data or stored by number fits every split of it."""
    write_json(tmp_path / "Set.inter.json", {"a": [0, 1, 2], "b": [2, 1, 0, 1, 2]})
    one = read_interactions(tmp_path, 0, LEAVE_ONE_OUT)
    two = read_interactions(tmp_path, 0, SplitRule(2, ""))
    assert one.fingerprint == two.fingerprint
    assert one.numbering() == two.numbering()
    facts = two.ranking_facts("test", two.evaluation("test"))
    user_b = np.array([1])
    assert facts == {
        "num_targets": 2,
        "num_cases": 2,
        "num_target_items": 2,
        **one.numbering(user_b),
    }
