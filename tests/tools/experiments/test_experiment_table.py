"""The numbers of an experiment's table, by hand and against a plain bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from experiment_grid import Grid, Row
from experiment_results import Result
from experiment_table import compare, mean_and_deviation, paired_bootstrap, per_user, write_report

from ilrec.errors import InputError
from ilrec.ranking.metrics import ranking_metrics

NUMBERING = {"users_sha256": "u", "items_sha256": "i"}


def result(directory: Path, name: str, seed: int, ranks: np.ndarray, **protocol) -> Result:
    import torch

    metrics = ranking_metrics(torch.from_numpy(ranks), (1, 5, 10, 20))
    protocol = {"num_users": len(ranks), "num_items": 100, **NUMBERING, **protocol}
    curve = [
        {"step": step, "loss/preference": 1 / step, "negatives/per_token": 3.0}
        for step in (1, 2, 3)
    ]
    return Result(
        directory / f"{name}-{seed}.json",
        seed,
        metrics,
        protocol,
        ranks,
        curve,
        60.0,
        120.0,
        180.0,
        {"abc"},
        {"a machine"},
    )


def grid_of(directory: Path, *names: str) -> Grid:
    path = directory / "tiny.yaml"
    path.write_text("rows: {}\n")
    return Grid(
        path,
        "data",
        "test",
        ["python"],
        "",
        20,
        {},
        {n: Row(n, recipe="r") for n in names},
        list(names),
        [names[:2]],
    )


def test_users_add_up_to_the_metrics():
    import torch

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
    centred = differences - differences.mean()
    assert paired_bootstrap(centred + 0.5 * centred.std() / len(centred) ** 0.5)[
        2
    ] == pytest.approx(0.617, abs=0.03), "z = 0.5"
    assert paired_bootstrap(np.zeros(50))[2] == 1.0


def test_seeds_are_paired_where_both_rows_have_them(tmp_path):
    """A is better than B by one user in seed 0; its other seed has no partner and does not
    count."""
    ranks = np.full(100, 50)
    better = ranks.copy()
    better[0] = 1
    results = {
        "A": [result(tmp_path, "A", 0, better), result(tmp_path, "A", 1, np.ones(100, dtype=int))],
        "B": [result(tmp_path, "B", 0, ranks)],
    }
    found = {c.metric: c for c in compare(grid_of(tmp_path, "A", "B"), results)}
    assert found["hit@10"].difference == pytest.approx(0.01) and found["hit@10"].num_seeds == (1, 1)
    assert found["hit@10"].low == 0.0 and found["hit@10"].p > 0.05


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"users_sha256": "v"},
            r"B-0\.json: is of other users or items than .*A-0\.json, or of them in another order; remove it and",
        ),
        ({"items_sha256": "j"}, r"B-0\.json: is of other users or items"),
        (
            {"users_sha256": None},
            r"B-0\.json: does not say of which users its ranks are \(an older version wrote it\); remove it and",
        ),
    ],
)
def test_ranks_of_others_are_not_compared(tmp_path, other, message):
    ranks = np.arange(1, 101)
    results = {
        "A": [result(tmp_path, "A", 0, ranks)],
        "B": [result(tmp_path, "B", 0, ranks, **other)],
    }
    with pytest.raises(InputError, match=message):
        compare(grid_of(tmp_path, "A", "B"), results)


def test_report_has_each_row_and_says_what_is_missing(tmp_path):
    generator = np.random.default_rng(2)
    results = {
        name: [result(tmp_path, name, seed, generator.integers(1, top, 300)) for seed in (0, 1)]
        for name, top in (("A", 20), ("B", 90))
    }
    path = write_report(
        grid_of(tmp_path, "A", "B", "C"),
        results,
        tmp_path / "out",
        ["grid.yaml", "--data", "/far/away/Instruments"],
    )
    text = path.read_text()
    assert (tmp_path / "out/tiny.png").stat().st_size > 10_000
    hits = [run.metrics["hit@10"] for run in results["A"]]
    assert (
        mean_and_deviation(hits) in text
        and "| A - B | NDCG@10 | +" in text
        and "not all seeds: C" in text
    )
    assert "/far/away" not in text, "a report does not hold the machine's places"
