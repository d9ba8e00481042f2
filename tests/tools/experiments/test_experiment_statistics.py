"""Comparisons over users, by hand and against a plain bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from experiment_statistics import compare, paired_bootstrap, per_user
from made_results import grid_of, result

from ilrec.errors import InputError
from ilrec.ranking.metrics import ranking_metrics


def test_users_add_up_to_the_metrics():
    ranks = np.random.default_rng(0).integers(1, 40, 500)
    metrics = ranking_metrics(torch.from_numpy(ranks), (5, 10))
    for metric in ("hit@5", "hit@10", "ndcg@5", "ndcg@10"):
        assert per_user(ranks, metric).mean() == pytest.approx(metrics[metric], abs=1e-6)


def test_bootstrap_is_the_plain_one():
    """Against resampling users one by one, and the normal approximation that both approach."""
    generator = np.random.default_rng(1)
    differences = generator.choice([-1.0, 0.0, 0.0, 0.5, 1.0], 2000)
    low, high, p = paired_bootstrap(differences, 4000)
    plain = [generator.choice(differences, len(differences)).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.004)
    assert p < 0.001

    # A mean of half its standard error: z = 0.5, two-sided p = 0.617.
    centred = differences - differences.mean()
    half_error = 0.5 * centred.std() / len(centred) ** 0.5
    assert paired_bootstrap(centred + half_error)[2] == pytest.approx(0.617, abs=0.03)
    assert paired_bootstrap(np.zeros(50))[2] == 1.0


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
