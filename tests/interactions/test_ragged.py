"""Rows of a flat array: views, slices, and rows without their last entries."""

from __future__ import annotations

import numpy as np

from ilrec.interactions.ragged import Ragged


def lists(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_rows_are_views_of_one_array():
    rows = Ragged.from_rows([[1, 2, 3], [], [4]])
    assert lists(rows) == [[1, 2, 3], [], [4]]
    assert len(rows) == 3
    assert rows.values.dtype == np.int32
    assert rows.lengths.tolist() == [3, 0, 1]
    assert rows[0].base is rows.values
    assert rows[-1].tolist() == [4]
    assert lists(rows[1:]) == [[], [4]]
    assert rows[1:].values is rows.values
    assert lists(rows[np.array([2, 0])]) == [[4], [1, 2, 3]]


def test_all_entries_in_the_order_of_the_rows():
    """The flat array holds more than the rows, and in another order."""
    rows = Ragged(np.array([9, 1, 2, 3, 8]), np.array([2, 4, 0]), np.array([4, 4, 2]))
    assert rows.flat().tolist() == [2, 3, 9, 1]
    assert Ragged.from_rows([]).flat().tolist() == []


def test_rows_by_their_lengths():
    assert lists(Ragged.from_lengths(np.array([7, 8, 9]), np.array([1, 2]))) == [[7], [8, 9]]
    assert lists(Ragged.from_rows([])) == []


def test_without_the_last_entries():
    rows = Ragged.from_rows([[1, 2, 3], [], [4]])
    assert lists(rows.without_last(2)) == [[1], [], []]
    assert rows.without_last(2).values is rows.values
