"""What is kept of a run: known by its contents, small, and read back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from ilrec.experiments.results import CURVE_POINTS, Results, default_settings, is_same, thin

RANKING = {
    "metrics": {"hit@10": 0.5},
    "protocol": {"num_users": 3, "num_beams": 5, "data": "/here", "checkpoint": "/there"},
    "seconds": 1.0,
    "commit": "c",
    "machine": "m",
    "finished": "2026-11-25",
}
MADE_OF = {"data": "d", "settings": {"beta": 0.1}, "sources": {}}


@pytest.mark.parametrize(
    "largest, kind", [(21, np.uint8), (9_922, np.uint16), (100_000, np.uint32)]
)
def test_ranks_are_read_back_and_take_little(largest, kind, tmp_path):
    results, ranks = Results(tmp_path), np.array([1, 7, largest])
    results.save("row", 0, "test", MADE_OF, None, RANKING, ranks)
    kept = results.result("row", 0, "test")
    assert kept.ranks_U.dtype == np.int64 and kept.ranks_U.tolist() == ranks.tolist()
    assert np.load(tmp_path / "row/seed-0.npz")["test"].dtype == kind
    assert kept.protocol == {"num_users": 3, "num_beams": 5} and kept.wall_seconds == 1.0
    assert results.result("row", 0, "valid") is None and results.result("row", 1, "test") is None


def test_splits_share_a_file_until_the_run_is_another(tmp_path):
    results, ranks = Results(tmp_path), np.array([1, 2, 3])
    for split in ("valid", "test"):
        results.save("row", 0, split, MADE_OF, None, RANKING, ranks)
    assert results.has("row", 0, "valid", MADE_OF, 5)
    assert results.has("row", 0, "test", MADE_OF, 5)
    assert not results.has("row", 0, "test", MADE_OF, 20), "of other beams"
    other = {**MADE_OF, "settings": {"beta": 0.2}}
    assert not results.has("row", 0, "test", other, 5)
    results.save("row", 0, "test", other, None, RANKING, ranks)
    assert results.result("row", 0, "valid") is None
    assert not results.has("row", 0, "test", MADE_OF, 5)


def test_a_setting_that_is_new_must_be_at_its_default():
    """An older result does not hold a setting that came later, which it cannot have used."""
    default = default_settings()["alpha"]
    assert is_same(MADE_OF, {**MADE_OF, "settings": {"beta": 0.1, "alpha": default}})
    assert not is_same(MADE_OF, {**MADE_OF, "settings": {"beta": 0.1, "alpha": default / 2}})
    assert not is_same({**MADE_OF, "settings": {"beta": 0.1, "gone": 1}}, MADE_OF)


def test_a_new_setting_of_a_baseline_must_be_at_its_default():
    old = {**MADE_OF, "method": "sasrec", "settings": {"hidden_size": 8}}
    assert is_same(old, {**old, "settings": {"hidden_size": 8, "num_folds": 0}})
    assert not is_same(old, {**old, "settings": {"hidden_size": 8, "num_folds": 4}})


def test_sources_count_by_what_they_are_made_of():
    def started_from(beta: float) -> dict:
        return {**MADE_OF, "sources": {"model": {**MADE_OF, "settings": {"beta": beta}}}}

    assert is_same(started_from(0.1), started_from(0.1))
    assert not is_same(started_from(0.1), started_from(0.2))
    assert not is_same(MADE_OF, started_from(0.1))


def test_a_curve_is_thin_and_ends_where_the_run_did():
    lines = [{"step": step, "loss/preference": 1 / step, "lr": 1.0} for step in range(1, 1001)]
    points = thin(lines)
    assert len(points) == CURVE_POINTS and points[0]["step"] == 1
    # What is not logged is 0; the learning rate is not kept.
    assert points[-1] == {"step": 1000, "loss/preference": 0.001, "negatives/per_token": 0.0}
    assert [point["step"] for point in thin(lines[:3])] == [1, 2, 3]
    assert thin([]) == []
