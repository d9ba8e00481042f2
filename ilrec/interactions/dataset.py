"""Who interacted with what: users' item sequences in time order, with leave-one-out splits
(method.md, Task)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilrec.errors import InputError
from ilrec.interactions.ragged import Ragged
from ilrec.items.numbering import numbering_digest

logger = logging.getLogger(__name__)

# One item to train on, one for validation, one for the test.
MIN_ITEMS_PER_USER = 3


@dataclass(frozen=True)
class InteractionDataset:
    """Users and items are numbered in the order of user_ids and item_ids.

    sequences: per user int32 item numbers, oldest first, at least MIN_ITEMS_PER_USER.
    titles: one per item ("" where the file has none), or None where no item has one.
    num_dropped_users: users left out because they have too few items for the three splits.
    fingerprint: SHA-256 of the files (and of the filter) that it was read from; what is made from
        it is cached under this.
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
        """Digests of the ids of (these) users and of all items, in order: what is stored by their
        numbers carries them."""
        return {
            "users_sha256": numbering_digest(self.user_ids[users]),
            "items_sha256": numbering_digest(self.item_ids),
        }

    def training_sequences(self) -> Ragged:
        """Every user's items but the last two."""
        return self.sequences.without_last(2)

    def evaluation(self, split: str) -> tuple[Ragged, np.ndarray]:
        """(histories, int64 targets [users]): the second last item for "valid", the last one for
        "test".

        The test history includes the validation item. Raises ValueError on another split.
        """
        if split not in ("valid", "test"):
            raise ValueError(f"split: expected valid or test, got {split!r}")
        count = 2 if split == "valid" else 1
        targets = self.sequences.values[self.sequences.ends - count].astype(np.int64)
        return self.sequences.without_last(count), targets


def assemble(
    path: Path,
    name: str,
    sequences: dict[str, np.ndarray],
    item_ids: list[str],
    titles: dict[str, str],
    fingerprint: str,
) -> InteractionDataset:
    """A dataset of {user: items}, without the users who have too few items; their number is said.

    Raises InputError, naming `path`, where nobody is left.
    """
    user_ids = ordered(
        user for user, sequence in sequences.items() if len(sequence) >= MIN_ITEMS_PER_USER
    )
    num_dropped = len(sequences) - len(user_ids)
    if not user_ids:
        raise InputError(
            f"{path}: no user with at least {MIN_ITEMS_PER_USER} items is left; "
            "use more data or, for RecBole files, a lower k_core"
        )
    if num_dropped:
        logger.warning(
            "%s: %d of %d users left out: fewer than %d items",
            path,
            num_dropped,
            len(sequences),
            MIN_ITEMS_PER_USER,
        )
    listed = [titles.get(item, "") for item in item_ids]
    return InteractionDataset(
        name,
        user_ids,
        item_ids,
        Ragged.from_rows(sequences[user] for user in user_ids),
        listed if any(listed) else None,
        num_dropped,
        fingerprint,
    )


def ordered(names: Iterable[str]) -> list[str]:
    """Numeric where all are whole numbers, else by text: the same numbering whatever the order in
    the file."""
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        # As int() would order them, which ends at some thousand digits.
        return sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return sorted(names)


def optional_file(directory: Path, name: str, suffix: str) -> Path | None:
    """NAME.suffix, else the only *.suffix; None where there is none."""
    if (directory / f"{name}.{suffix}").exists():
        return directory / f"{name}.{suffix}"
    found = sorted(directory.glob(f"*.{suffix}"))
    if len(found) > 1:
        raise InputError(
            f"{directory}: expected {name}.{suffix} or a single *.{suffix}, found "
            f"{', '.join(p.name for p in found)}; keep one, or rename the right one {name}.{suffix}"
        )
    return found[0] if found else None
