"""Which of a user's items are for training, for validation and for the test (docs/data.md, Splits).

There are two rules. By order: the last items of each user are test targets, and those before them
are validation targets. By time: what happened from a date on is for the test, and nothing of it is
in the training.

Shapes: U users, C cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ilrec.config.dates import split_dates
from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged


@dataclass(frozen=True)
class SplitRule:
    """num_targets and split_time as in DataConfig. If split_time is set, it alone decides."""

    num_targets: int
    split_time: str

    def __str__(self) -> str:
        """The setting that decides, as a recipe spells it."""
        if self.split_time:
            return f"split_time: {self.split_time}"
        return f"num_targets: {self.num_targets}"

    def in_words(self) -> str:
        """What is for training, validation and test, for people."""
        first, _, second = self.split_time.partition(",")
        if second:
            return (
                f"by time. Training ends before {first}; from there on items are for validation, "
                f"and from {second} on for the test."
            )
        if first:
            return (
                f"by time. Items from {first} on are for the test; the last item before it of each "
                "user is for validation, and all earlier ones are for training."
            )
        if self.num_targets == 1:
            return (
                "leave-one-out. Each user's last item is for the test, the one before it for "
                "validation, and all others are for training."
            )
        n = self.num_targets
        return (
            f"by order. Each user's last {n} items are for the test, the {n} before them for "
            "validation, and all others are for training."
        )


# By order, with one target: the usual split, and that of data that is read without settings.
LEAVE_ONE_OUT = SplitRule(num_targets=1, split_time="")


@dataclass(frozen=True)
class Splits:
    """training: [U], a row for each user, oldest item first; empty for a user who is left out.
    cases: of "valid" and "test". facts: what a ranking of each of them records of the split.
    report: what people should know of the split, or an empty text."""

    training: Ragged
    cases: dict[str, Cases]
    facts: dict[str, dict[str, Any]]
    report: str


def split_interactions(sequences: Ragged, times: Ragged | None, rule: SplitRule) -> Splits:
    """sequences: items of each user, oldest first. times: of each item, in seconds since 1970.

    Raises InputError if a split would be empty, or if split_time is set and there are no times.
    """
    if not rule.split_time:
        return _by_order(sequences, rule.num_targets)
    if times is None:
        raise InputError(
            f"split_time: {rule.split_time}: this data has no time stamps; prepare it again with "
            "tools/prepare_data.py from files that have them (LC-Rec's have none), or use "
            "num_targets"
        )
    return _by_time(sequences, times, rule.split_time)


def _by_order(sequences: Ragged, num_targets: int) -> Splits:
    """The last num_targets items of each user are test targets, and as many before them validation
    targets. Each target is a case of its own, with all items before it as history."""
    least = 2 * num_targets + 1
    users = np.flatnonzero(sequences.lengths >= least)
    if not len(users):
        raise InputError(
            f"no user with at least {least} items is left (num_targets: {num_targets}); use more "
            "data, a lower num_targets or, for RecBole files, a lower k_core"
        )

    def successive(num_held_out: int) -> Cases:
        first_U = sequences.ends[users] - num_held_out
        places_C = (first_U[:, None] + np.arange(num_targets)).ravel()
        return _cases(sequences, np.repeat(users, num_targets), places_C, places_C + 1)

    num_left_out = len(sequences) - len(users)
    report = ""
    if num_left_out:
        report = (
            f"{num_left_out:,} of {len(sequences):,} users left out, because they have fewer than "
            f"{least} items (num_targets: {num_targets})"
        )
    facts = {"num_targets": num_targets}
    return Splits(
        # Of a user with fewer items this leaves nothing.
        training=sequences.without_last(2 * num_targets),
        cases={"valid": successive(2 * num_targets), "test": successive(num_targets)},
        facts={"valid": facts, "test": facts},
        report=report,
    )


def _by_time(sequences: Ragged, times: Ragged, split_time: str) -> Splits:
    """All items of a user from the last date on are the targets of one test case. Validation
    targets are those between two dates, or each user's last item before a single one."""
    dates = split_dates(split_time)
    starts, ends = sequences.starts, sequences.ends
    # Places in the flat array: training, validation and test follow one another.
    valid_U = starts + _num_before(times, dates[0])
    test_U = starts + _num_before(times, dates[-1])
    if len(dates) == 1:
        # A user with a single item before the date keeps it for training.
        valid_U = np.where(valid_U - starts >= 2, valid_U - 1, valid_U)

    training = Ragged(sequences.values, starts, valid_U)
    cases, facts = {}, {}
    for split, begins_U, ends_U in (("valid", valid_U, test_U), ("test", test_U, ends)):
        has_targets_U = ends_U > begins_U
        is_new_U = begins_U == starts
        users = np.flatnonzero(has_targets_U & ~is_new_U)
        if not len(users):
            first, last = _date(times.flat().min()), _date(times.flat().max())
            raise InputError(
                f"split_time: {split_time}: no user has a {split} target and an item before it; "
                f"expected dates within the data's times, which go from {first} to {last}"
            )
        cases[split] = _cases(sequences, users, begins_U[users], ends_U[users])
        facts[split] = {
            "split_time": split_time,
            "num_new_users": int((has_targets_U & is_new_U).sum()),
            **_new_items(training, cases[split]),
        }

    test = facts["test"]
    report = (
        f"split_time {split_time}: {training.lengths.sum():,} interactions to train on, "
        f"{len(cases['test']):,} test users; {test['num_new_users']:,} users have nothing before "
        f"the test and are left out of it; {test['num_new_item_targets']:,} of "
        f"{cases['test'].targets.lengths.sum():,} test targets are items that training never shows "
        f"({test['num_new_items']:,} items)"
    )
    return Splits(training, cases, facts, report)


def _cases(
    sequences: Ragged, users_C: np.ndarray, begins_C: np.ndarray, ends_C: np.ndarray
) -> Cases:
    """Cases with the targets from begins_C to ends_C (places in the flat array), and all of the
    user's items before them as history."""
    histories = Ragged(sequences.values, sequences.starts[users_C], begins_C)
    return Cases(users_C, histories, Ragged(sequences.values, begins_C, ends_C))


def _num_before(times: Ragged, date: int) -> np.ndarray:
    """int64 [U]: how many of each user's times are before the date."""
    before = np.concatenate([[0], np.cumsum(times.values < date)])
    return before[times.ends] - before[times.starts]


def _new_items(training: Ragged, cases: Cases) -> dict[str, int]:
    """How many items the targets name that the training never shows, and how many targets these
    are."""
    targets = cases.targets.flat()
    is_new = ~np.isin(targets, training.flat())
    return {
        "num_new_items": len(np.unique(targets[is_new])),
        "num_new_item_targets": int(is_new.sum()),
    }


def _date(seconds: np.integer) -> str:
    return str(np.datetime64(int(seconds), "s"))
