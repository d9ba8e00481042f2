"""Leave-one-out splits, and users with too few items."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from test_lcrec import write_json

from ilrec.data.dataset import fingerprint_of
from ilrec.data.interactions import read_interactions


def test_leave_one_out(tmp_path: Path):
    write_json(tmp_path / "Set.inter.json", {"0": [0, 1, 2, 3, 4], "1": [5, 6, 7]})
    dataset = read_interactions(tmp_path, 0)
    assert [s.tolist() for s in dataset.training_sequences()] == [[0, 1, 2], [5]]
    histories, targets = dataset.evaluation("valid")
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 1, 2], [5]], [3, 6])
    histories, targets = dataset.evaluation("test")
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 1, 2, 3], [5, 6]], [4, 7])
    with pytest.raises(ValueError, match="expected valid or test"):
        dataset.evaluation("train")


def test_short_users_are_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_json(tmp_path / "Set.inter.json", {"a": [1, 2], "b": [1, 2, 3], "c": []})
    with caplog.at_level(logging.WARNING):
        dataset = read_interactions(tmp_path, 0)
    assert (dataset.user_ids, dataset.num_dropped_users) == (["b"], 2)
    assert "2 of 3 users left out" in caplog.text


def test_fingerprint_follows_files_and_parts(tmp_path: Path):
    one, two = write_json(tmp_path / "one", {"a": 1}), write_json(tmp_path / "two", {"a": 2})
    assert fingerprint_of([one], 5) == fingerprint_of([one], 5)
    assert len({fingerprint_of([one], 5), fingerprint_of([two], 5), fingerprint_of([one], 6), fingerprint_of([one, two], 5)}) == 4
