"""Rows of integers of different lengths in one flat array: the item sequences of users, the token
sequences of items.

A row is a view of the array, so that ten million interactions take no more memory than their
numbers, and none if the array is a memory-mapped file.

Shapes: R rows, E entries in all rows together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Ragged(Sequence[np.ndarray]):
    """values: integers, E or more. starts, ends: int64 [R]. Row r is values[starts[r]:ends[r]]."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.values = values
        self.starts = starts
        self.ends = ends

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Rows of these lengths that follow one another in `values`."""
        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(values, ends - lengths, ends)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Sequence[int] | np.ndarray], dtype: type = np.int32
    ) -> Ragged:
        """The rows, copied into one array."""
        arrays: list[np.ndarray] = [np.asarray(row, dtype=dtype) for row in rows]
        # The empty array makes this work, with the right type, for no rows at all.
        values = np.concatenate([np.empty(0, dtype=dtype), *arrays])
        lengths = np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays))
        return cls.from_lengths(values, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Ragged: ...

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray | Ragged:
        if isinstance(index, (slice, np.ndarray)):
            return Ragged(self.values, self.starts[index], self.ends[index])
        return self.values[self.starts[index] : self.ends[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield self.values[start:end]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R]"""
        return self.ends - self.starts

    def flat(self) -> np.ndarray:
        """The entries of all rows, row after row, copied into one array."""
        ends = np.cumsum(self.lengths)
        shifts = np.repeat(self.starts - (ends - self.lengths), self.lengths)
        return self.values[shifts + np.arange(len(shifts))]

    def without_last(self, count: int) -> Ragged:
        """Each row without its last `count` entries; a row that has no more becomes empty."""
        return Ragged(self.values, self.starts, np.maximum(self.ends - count, self.starts))
