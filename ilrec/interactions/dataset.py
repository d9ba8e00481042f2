"""Who interacted with what: each user's items in time order, with leave-one-out splits.

A user's last item is the target of the test, the one before it the target of the validation, and
all items before these two are for training (docs/method.md, Task).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.items.numbering import numbering_digest

logger = logging.getLogger(__name__)

# One item to train on, one for the validation, one for the test.
MIN_ITEMS_PER_USER = 3


@dataclass(frozen=True)
class InteractionDataset:
    """Users and items, numbered in the order of user_ids and item_ids.

    sequences: for each user the int32 numbers of the items, oldest first, at least
        MIN_ITEMS_PER_USER.
    titles: one for each item ("" if the file has none for it), or None if no item has a title.
    num_dropped_users: users left out because they have too few items for the three splits.
    fingerprint: SHA-256 of the files (and of the filter) that the data was read from. Whatever is
        cached for this data is cached under this name.
    """

    name: str
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    sequences: Ragged
    titles: Sequence[str] | None
    num_dropped_users: int
    fingerprint: str

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def numbering(self, users: slice = slice(None)) -> dict[str, str]:
        """Digests of the ids of all items and of all (or these) users, in their order.

        Results that are stored by user or item number carry these digests, so that they cannot be
        read with another numbering.
        """
        return {
            "users_sha256": numbering_digest(self.user_ids[users]),
            "items_sha256": numbering_digest(self.item_ids),
        }

    def training_sequences(self) -> Ragged:
        """Each user's items without the last two."""
        return self.sequences.without_last(2)

    def evaluation(self, split: str) -> Cases:
        """The cases of the split "valid" or "test": one for each user, in order.

        The target is the second last item for "valid" and the last one for "test"; the history is
        all items before it, so that the history of "test" includes the target of "valid". Raises
        ValueError on another split.
        """
        if split not in ("valid", "test"):
            raise ValueError(f"split: expected valid or test, got {split!r}")
        held_out = 2 if split == "valid" else 1
        begins = self.sequences.ends - held_out
        targets = Ragged(self.sequences.values, begins, begins + 1)
        return Cases(np.arange(self.num_users), self.sequences.without_last(held_out), targets)


def assemble(
    path: Path,
    name: str,
    sequences: dict[str, np.ndarray],
    item_ids: list[str],
    titles: dict[str, str],
    fingerprint: str,
) -> InteractionDataset:
    """A dataset of {user: items}, without the users who have too few items.

    The number of users left out is logged. Raises InputError, naming `path`, if nobody is left.
    """
    long_enough = []
    for user, sequence in sequences.items():
        if len(sequence) >= MIN_ITEMS_PER_USER:
            long_enough.append(user)
    user_ids = ordered(long_enough)

    if not user_ids:
        raise InputError(
            f"{path}: no user with at least {MIN_ITEMS_PER_USER} items is left; "
            "use more data or, for RecBole files, a lower k_core"
        )
    num_dropped = len(sequences) - len(user_ids)
    if num_dropped:
        logger.warning(
            "%s: %d of %d users left out, because they have fewer than %d items",
            path,
            num_dropped,
            len(sequences),
            MIN_ITEMS_PER_USER,
        )

    all_titles = [titles.get(item, "") for item in item_ids]
    return InteractionDataset(
        name=name,
        user_ids=user_ids,
        item_ids=item_ids,
        sequences=Ragged.from_rows(sequences[user] for user in user_ids),
        titles=all_titles if any(all_titles) else None,
        num_dropped_users=num_dropped,
        fingerprint=fingerprint,
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
