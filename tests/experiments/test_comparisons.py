"""Comparisons over users, by hand and against a plain bootstrap."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from made_results import grid_of, result

from ilrec.errors import InputError
from ilrec.experiments.comparisons import compare


def test_seeds_are_paired_where_both_rows_have_them(tmp_path: Path):
    """A is better than B by one user in seed 0. Its other seed has no partner and does not
    count."""
    ranks = np.full(100, 50)
    better = ranks.copy()
    better[0] = 1
    results = {
        "A": [result(tmp_path, "A", 0, better), result(tmp_path, "A", 1, np.ones(100, dtype=int))],
        "B": [result(tmp_path, "B", 0, ranks)],
    }
    found = {c.metric: c for c in compare(grid_of(tmp_path, "A", "B"), results)}
    hits = found["hit@10"]
    assert hits.difference == pytest.approx(0.01) and hits.num_seeds == (1, 1)
    assert hits.low == 0.0 and hits.p > 0.05


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"users_sha256": "v"},
            r"B-0\.json: is of other users or items than .*A-0\.json, "
            r"or of them in another order; remove it and",
        ),
        ({"items_sha256": "j"}, r"B-0\.json: is of other users or items"),
        (
            {"users_sha256": None},
            r"B-0\.json: does not say of which users its ranks are "
            r"\(an older version wrote it\); remove it and",
        ),
    ],
)
def test_ranks_of_others_are_not_compared(tmp_path: Path, other, message):
    ranks = np.arange(1, 101)
    results = {
        "A": [result(tmp_path, "A", 0, ranks)],
        "B": [result(tmp_path, "B", 0, ranks, **other)],
    }
    with pytest.raises(InputError, match=message):
        compare(grid_of(tmp_path, "A", "B"), results)


def test_p_is_adjusted_within_a_metric(tmp_path: Path):
    """Three pairs, of which two differ clearly: Holm's rule multiplies the smallest p by 3."""
    ranks = np.full(100, 50)
    better = np.where(np.arange(100) < 40, 1, 50)
    results = {
        "A": [result(tmp_path, "A", 0, better)],
        "B": [result(tmp_path, "B", 0, ranks)],
    }
    grid = grid_of(tmp_path, "A", "B")
    three = dataclasses.replace(grid, compare=[("A", "B"), ("B", "A"), ("B", "B")])
    found = [c for c in compare(three, results) if c.metric == "hit@10"]
    assert [c.p for c in found] == pytest.approx([1 / 10_001, 1 / 10_001, 1.0])
    assert [c.p_holm for c in found] == pytest.approx([3 / 10_001, 3 / 10_001, 1.0])
