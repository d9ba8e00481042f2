"""SASRec, the model: causality, padding, probabilities, and what is saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_filters import CONFIG, NUM_ITEMS, make_model

from ilrec.collaborative.sasrec import SASRec
from ilrec.errors import InputError

ITEM_IDS = [f"item {number}" for number in range(NUM_ITEMS)]


@pytest.fixture
def model() -> SASRec:
    return make_model()


def test_a_state_sees_the_past_only(model: SASRec):
    items = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 5]])
    same = (model(items) - model(changed)).abs().amax(dim=-1)[0] < 1e-6
    assert same.tolist() == [True, True, True, False, False]


def test_padding_changes_nothing(model: SASRec):
    """A history alone, the same beside a longer one and so padded, and one with items before the
    oldest that is read."""
    alone = model.item_probabilities([[3, 4]])
    padded = model.item_probabilities([[3, 4], [1, 2, 3, 4, 5]])[:1]
    torch.testing.assert_close(padded, alone)
    longer = model.item_probabilities([[11, 10, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(longer, model.item_probabilities([[1, 2, 3, 4, 5]]))


def test_probabilities_sum_to_one_and_ignore_dropout(model: SASRec):
    model.train()
    histories: list = [np.array([1, 2]), [5], []]
    first = model.item_probabilities(histories)
    assert first.shape == (3, NUM_ITEMS)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(model.item_probabilities(histories), first, rtol=0, atol=0)
    torch.testing.assert_close(first[2], torch.full((NUM_ITEMS,), 1 / NUM_ITEMS))


def test_unseen_items_share_the_probability(model: SASRec):
    """Also the seen items of a history that is longer than what is read have none. A history of the
    whole catalogue gives no NaN."""
    long_history = [11, 10, 1, 2, 3, 4, 5]
    before = model.item_probabilities([long_history])[0]
    model.config = dataclasses.replace(CONFIG, candidates="unseen")
    after = model.item_probabilities([long_history, [7], [], list(range(NUM_ITEMS))])

    seen = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    seen[long_history] = True
    torch.testing.assert_close(after[0], before.masked_fill(seen, 0) / before[~seen].sum())
    assert after[1, 7] == 0
    assert (after[2] == 1 / NUM_ITEMS).all()
    assert after[3].isfinite().all()


def test_save_and_load(model: SASRec, tmp_path: Path):
    model.save(tmp_path / "sasrec", ITEM_IDS)
    loaded = SASRec.load(tmp_path / "sasrec", ITEM_IDS)
    assert (loaded.num_items, loaded.config, loaded.training) == (NUM_ITEMS, CONFIG, False)
    histories = [[1, 2, 3], [7]]
    assert torch.equal(loaded.item_probabilities(histories), model.item_probabilities(histories))
    names = sorted(path.name for path in (tmp_path / "sasrec").iterdir())
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_is_refused(model: SASRec, tmp_path: Path, name: str):
    model.save(tmp_path, ITEM_IDS)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} missing"):
        SASRec.load(tmp_path, ITEM_IDS)


def test_half_a_file_of_weights_is_refused(model: SASRec, tmp_path: Path):
    model.save(tmp_path, ITEM_IDS)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="do not fit together"):
        SASRec.load(tmp_path, ITEM_IDS)


def test_settings_of_another_catalogue_are_refused(model: SASRec, tmp_path: Path):
    model.save(tmp_path, ITEM_IDS)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_items": NUM_ITEMS + 1}))
    with pytest.raises(InputError, match="do not fit together"):
        SASRec.load(tmp_path, ITEM_IDS)


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        (
            ITEM_IDS[::-1],
            "was trained on 12 items, as many as the data has, but not the same in the same order",
        ),
        (
            [*ITEM_IDS[:-1], "another"],
            "as many as the data has, but not the same in the same order",
        ),
        (ITEM_IDS[1:], "was trained on 12 items, the data has 11"),
    ],
)
def test_another_numbering_is_refused(
    model: SASRec, tmp_path: Path, item_ids: list[str], message: str
):
    model.save(tmp_path, ITEM_IDS)
    mend = "train it on this data with `ilrec sasrec`"
    with pytest.raises(InputError, match=f"{message}; {mend}"):
        SASRec.load(tmp_path, item_ids)


def test_a_filter_of_an_older_version_is_refused(model: SASRec, tmp_path: Path):
    model.save(tmp_path, ITEM_IDS)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["items_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    message = "does not say which items its numbers mean .*; train it on this data"
    with pytest.raises(InputError, match=message):
        SASRec.load(tmp_path, ITEM_IDS)


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_new_weights_never_lie_beside_old_settings(
    model: SASRec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second save is interrupted between the two files. It leaves an incomplete directory, and
    not the first one's items."""
    model.save(tmp_path, ITEM_IDS)
    monkeypatch.setattr("ilrec.collaborative.sasrec.write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path, ITEM_IDS[::-1])
    with pytest.raises(InputError, match="config.json missing"):
        SASRec.load(tmp_path, ITEM_IDS)
