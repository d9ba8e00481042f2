"""`ilrec ids`: codes belong to items, in whatever order their embeddings come."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_ITEMS

from ilrec.commands.ids import main
from ilrec.errors import InputError


def build(
    data: Path, directory: Path, ids: list[str] | None, rows: np.ndarray
) -> dict[str, list[str]]:
    """The index that is built from embeddings with these ids; None: without a file of ids."""
    directory.mkdir()
    np.save(directory / "mine.npy", rows)
    if ids is not None:
        (directory / "mine.ids.json").write_text(json.dumps(ids))
    output = directory / "ids.index.json"
    paths = ["--embeddings", str(directory / "mine.npy"), "--output", str(output)]
    main(["--data", str(data), *paths, "--codebook_size", "4"])
    return json.loads(output.read_text())


def test_rows_in_another_order_give_the_same_ids(data, tmp_path):
    ids = [str(item) for item in range(NUM_ITEMS)]
    rows = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4))
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    one = build(data, tmp_path / "one", ids, rows)
    other = build(data, tmp_path / "other", [ids[item] for item in order], rows[order])
    assert other == one
    assert len({tuple(codes) for codes in one.values()}) == NUM_ITEMS


def test_an_array_alone_is_refused(data, tmp_path):
    with pytest.raises(
        InputError,
        match=r"mine\.ids\.json: no such file, so that nothing says which row is which item",
    ):
        build(data, tmp_path / "bare", None, np.zeros((NUM_ITEMS, 4)))
    assert not (tmp_path / "bare" / "ids.index.json").exists()
