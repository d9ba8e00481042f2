"""Standard errors that count users, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ilrec.ranking.certainty import certainty, gains_of_users


def write(path: Path, ranks: list[list[int]]) -> Path:
    path.write_text(json.dumps({"protocol": {"num_users": len(ranks)}}))
    np.save(path.with_suffix(".npy"), np.array(ranks).ravel())
    return path


def test_users_are_counted_not_targets(tmp_path: Path):
    """Four users with two targets each. The users' hit rates are 1, 1, .5 and 0: their mean is
    .625, their deviation is sqrt((2 * .375^2 + .125^2 + .625^2) / 3) = .4787, and half of that is
    the standard error. All targets of the other row are found, so its error is 0 and it gains
    .375."""
    some = write(tmp_path / "some.json", [[1, 10], [3, 4], [2, 11], [12, 13]])
    every = write(tmp_path / "every.json", [[1, 1]] * 4)
    assert gains_of_users(some, "hit@10").tolist() == [1, 1, 0.5, 0]
    assert gains_of_users(some, "ndcg@10")[3] == 0
    assert gains_of_users(every, "ndcg@10").tolist() == pytest.approx([1] * 4)

    lines = certainty({"some": some, "every": every}, "some", "every").splitlines()
    assert lines[0] == "hit@10, standard errors: some 0.2394, every 0.0000"
    assert lines[1].startswith("hit@10, every - some: +0.3750 [+0.0000, +0.7500], p = ")
