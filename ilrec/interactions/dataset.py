"""Who interacted with what: each user's items in time order, split by a rule of splits.py."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.interactions.splits import LEAVE_ONE_OUT, SplitRule, Splits, split_interactions
from ilrec.items.numbering import numbering_digest

# What leave-one-out needs: one item to train on, one for the validation, one for the test.
MIN_ITEMS_PER_USER = 3


@dataclass(frozen=True)
class InteractionDataset:
    """Users and items, numbered in the order of user_ids and item_ids.

    sequences: for each user the int32 numbers of the items, oldest first.
    titles: one for each item ("" if the file has none for it), or None if no item has a title.
    num_dropped_users: users that the filters of a preparation have left out.
    fingerprint: SHA-256 of the files (and of the filter) that the data was read from. Whatever is
        cached for this data is cached under this name.
    times: when each item of `sequences` was chosen, int64, in whole seconds since 1970 (UTC); None
        if the files do not say.
    rule: how the data is split. It decides no number and no fingerprint.
    """

    name: str
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    sequences: Ragged
    titles: Sequence[str] | None
    num_dropped_users: int
    fingerprint: str
    times: Ragged | None = None
    rule: SplitRule = LEAVE_ONE_OUT

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def numbering(self, users: slice | np.ndarray = slice(None)) -> dict[str, str]:
        """Digests of the ids of all items and of all (or these) users, in their order.

        Results that are stored by user or item number carry these digests, so that they cannot be
        read with another numbering.
        """
        numbers = np.arange(self.num_users)[users].tolist()
        return {
            "users_sha256": numbering_digest(self.user_ids[number] for number in numbers),
            "items_sha256": numbering_digest(self.item_ids),
        }

    @functools.cached_property
    def splits(self) -> Splits:
        """Raises InputError if the rule cannot split this data."""
        return split_interactions(self.sequences, self.times, self.rule)

    def training_sequences(self) -> Ragged:
        """The items of each user that are for training; none for a user who is left out."""
        return self.splits.training

    def evaluation(self, split: str) -> Cases:
        """The cases of the split "valid" or "test", by user, and of each user the oldest first.

        A history is all items before the case's targets, so that the history of "test" includes the
        targets of "valid". Raises ValueError on another split.
        """
        if split not in self.splits.cases:
            raise ValueError(f"split: expected valid or test, got {split!r}")
        return self.splits.cases[split]

    def ranking_facts(self, split: str, cases: Cases) -> dict[str, Any]:
        """What a ranking of these cases of a split records: how the data was split, how much was
        ranked, and whose numbers they are."""
        return {
            **self.splits.facts[split],
            "num_cases": len(cases),
            "num_target_items": int(cases.targets.lengths.sum()),
            **self.numbering(np.unique(cases.users)),
        }


def assemble(
    name: str,
    sequences: dict[str, np.ndarray],
    item_ids: list[str],
    titles: dict[str, str],
    fingerprint: str,
    times: dict[str, np.ndarray] | None = None,
) -> InteractionDataset:
    """A dataset of {user: items}, and {user: seconds} where the times are known."""
    user_ids = ordered(sequences)
    all_titles = [titles.get(item, "") for item in item_ids]
    times_of_rows = None
    if times is not None:
        times_of_rows = Ragged.from_rows((times[user] for user in user_ids), np.int64)
    return InteractionDataset(
        name=name,
        user_ids=user_ids,
        item_ids=item_ids,
        sequences=Ragged.from_rows(sequences[user] for user in user_ids),
        titles=all_titles if any(all_titles) else None,
        num_dropped_users=0,
        fingerprint=fingerprint,
        times=times_of_rows,
    )


def ordered(names: Iterable[str]) -> list[str]:
    """The names sorted as whole numbers if all of them are, else as text.

    Users and items are numbered in this order, so that their numbers do not depend on the order of
    the lines in a file.
    """
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=_number_key)
    return sorted(names)


def _number_key(name: str) -> tuple[int, str, str]:
    """Sorts text of digits as int() would, which refuses more than some thousand digits."""
    # Without leading zeros, the longer number is the larger one, and two of the same length compare
    # as text. The name itself comes last: "7" and "07" are different names.
    digits = name.lstrip("0")
    return len(digits), digits, name


def optional_file(directory: Path, name: str, suffix: str) -> Path | None:
    """The file NAME.suffix, or the only file *.suffix, or None if there is none.

    Raises InputError if there are several and none of them is NAME.suffix.
    """
    if (directory / f"{name}.{suffix}").exists():
        return directory / f"{name}.{suffix}"
    found = sorted(directory.glob(f"*.{suffix}"))
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(
            f"{directory}: expected {name}.{suffix} or a single *.{suffix}, found {listed}; "
            f"keep one, or rename the right one {name}.{suffix}"
        )
    return found[0] if found else None
