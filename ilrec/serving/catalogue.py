"""The items of the catalogue by id, and parts of it that are searched alone.

Shapes: I items of a part, B users, K ranked items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ilrec.config.parsers import UNKNOWN
from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.items.trie import ItemTrie
from ilrec.samples.builder import SampleBuilder


class Catalogue:
    """Items by id. titles: None if the data has none."""

    def __init__(self, dataset: InteractionDataset) -> None:
        self.item_ids = dataset.item_ids
        self.titles = dataset.titles
        self.number_of = {item: number for number, item in enumerate(dataset.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)

    def numbers(self, ids: Iterable[str], where: str, unknown: str) -> np.ndarray:
        """int64: the numbers of items, in the order of their ids.

        where: the beginning of a message, such as a file and a line. unknown: what happens to an id
        that is not in the catalogue: error raises InputError, skip leaves it out.
        """
        check_unknown(unknown)
        numbers = []
        for item in ids:
            number = self.number_of.get(item)
            if number is not None:
                numbers.append(number)
            elif unknown == "error":
                raise InputError(
                    f"{where}: item {item!r} is not in the catalogue of {len(self):,} items; "
                    "correct the id, or let such items be skipped with unknown: skip"
                )
        return np.array(numbers, dtype=np.int64)


def check_unknown(unknown: str) -> None:
    """Raises InputError for another word than error and skip."""
    if unknown not in UNKNOWN:
        raise InputError(f"unknown: expected {' or '.join(UNKNOWN)}, got {unknown!r}")


@dataclass(frozen=True)
class Part:
    """Some items of the catalogue, with a trie of theirs alone: a search in it sees no other item,
    and gives them the scores that they have in the whole.

    items_I: int64, ascending. The trie numbers them 0, 1, 2, ...
    """

    items_I: np.ndarray
    trie: ItemTrie

    @classmethod
    def of(cls, items_I: np.ndarray, builder: SampleBuilder, device: torch.device) -> Part:
        """The part of these items, ascending and at least one."""
        sequences = builder.response_sequences()[items_I]
        return cls(items_I, ItemTrie.from_sequences(sequences).to(device))

    def inside(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows of the catalogue's numbers -> rows of the part's numbers, without other items."""
        found = []
        for row in rows:
            places = np.searchsorted(self.items_I, row).clip(max=len(self.items_I) - 1)
            found.append(places[self.items_I[places] == row])
        return found

    def outside(self, items_BK: Tensor) -> np.ndarray:
        """The part's numbers -> the catalogue's: int64 [B, K]; -1 stays."""
        numbers_BK = items_BK.numpy()
        return np.where(numbers_BK < 0, -1, self.items_I[numbers_BK])
