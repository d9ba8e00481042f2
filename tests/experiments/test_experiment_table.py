"""The report of an experiment: what stands in it, and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_results import grid_of, result

from ilrec.experiments.table import mean_and_deviation, write_report


def test_a_mean_over_seeds_has_a_deviation():
    assert mean_and_deviation([0.1]) == "0.1000"
    assert mean_and_deviation([0.1, 0.3]) == "0.2000 ± 0.1414"


def test_a_report_has_each_row_and_names_what_is_missing(tmp_path: Path):
    generator = np.random.default_rng(2)
    results = {}
    for name, top in (("A", 20), ("B", 90)):
        results[name] = [
            result(tmp_path, name, seed, generator.integers(1, top, 300)) for seed in (0, 1)
        ]
    words = ["grid.yaml", "--data", "/far/away/Instruments"]
    path = write_report(grid_of(tmp_path, "A", "B", "C"), results, tmp_path / "out", words)
    text = path.read_text()
    assert (tmp_path / "out/tiny.png").stat().st_size > 10_000
    assert mean_and_deviation([run.metrics["hit@10"] for run in results["A"]]) in text
    assert "| A - B | NDCG@10 | +" in text and "not all seeds: C" in text
    assert "/far/away" not in text, "a report does not hold the machine's places"
