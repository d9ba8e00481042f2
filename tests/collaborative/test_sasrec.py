"""SASRec: causality, padding, the windows by hand, that it learns what can be learnt, and that it
survives the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ilrec.collaborative.popularity import popularity_scores
from ilrec.collaborative.sasrec import SASRec
from ilrec.collaborative.sasrec_training import (
    _batches,
    _loss,
    _ndcg,
    _seen_before,
    _windows,
    train_sasrec,
)
from ilrec.config.sections import SASRecConfig
from ilrec.errors import InputError

NUM_ITEMS = 12
ITEM_IDS = [f"item {number}" for number in range(NUM_ITEMS)]
CONFIG = SASRecConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    dropout=0.1,
    max_history_items=5,
    learning_rate=1e-2,
    weight_decay=0.0,
    batch_size=16,
    num_epochs=8,
    patience=8,
    seed=3,
)


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    model = SASRec(NUM_ITEMS, CONFIG)
    for parameter in (model.items.weight, model.positions.weight):
        torch.nn.init.normal_(
            parameter, std=0.5
        )  # apart enough for a change of item or position to show
    return model.eval()


def cycles(num_users: int) -> list[np.ndarray]:
    """User u sees u, u + 1, u + 2, ... modulo the catalogue: the next item is certain."""
    return [(np.arange(user % 4 + 4) + user) % NUM_ITEMS for user in range(num_users)]


def test_a_state_sees_the_past_only(model: SASRec):
    items = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 5]])
    same = (model(items) - model(changed)).abs().amax(dim=-1)[0] < 1e-6
    assert same.tolist() == [True, True, True, False, False]


def test_padding_changes_nothing(model: SASRec):
    """A history alone, beside a longer one (so padded), and with items before the oldest that is
    read."""
    alone = model.item_probabilities([[3, 4]])
    padded = model.item_probabilities([[3, 4], [1, 2, 3, 4, 5]])[:1]
    torch.testing.assert_close(padded, alone)
    longer = model.item_probabilities([[11, 10, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(longer, model.item_probabilities([[1, 2, 3, 4, 5]]))


def test_probabilities_sum_to_one_and_ignore_dropout(model: SASRec):
    model.train()
    histories = [np.array([1, 2]), [5], []]
    first = model.item_probabilities(histories)
    assert (first.shape, first.dtype) == ((3, NUM_ITEMS), torch.float32)
    torch.testing.assert_close(first.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(model.item_probabilities(histories), first, rtol=0, atol=0)
    torch.testing.assert_close(first[2], torch.full((NUM_ITEMS,), 1 / NUM_ITEMS))


def test_windows_by_hand():
    """max_history_items 3, sequence 0..6: [3 4 5 6] from the newest end, then [0 1 2 3], where 3 is
    a target.

    Sequence 7 8 is one padded window; a single item has no target. Each item but the first is then
    a target once.
    """
    windows = _windows([np.arange(7), np.array([7, 8]), np.array([9])], max_history_items=3)
    assert windows.tolist() == [[3, 4, 5, 6], [0, 1, 2, 3], [-1, -1, 7, 8]]
    inputs, targets = windows[:, :-1], windows[:, 1:]
    assert sorted(targets[inputs >= 0].tolist()) == [1, 2, 3, 4, 5, 6, 8]


def test_batches_hold_each_window_once_and_like_lengths():
    """Lengths 2 and 6 in turn, eight of each, in batches of four: two batches of short windows, two
    of long ones."""
    windows = _windows(
        [np.arange(2 if number % 2 else 6) for number in range(16)], max_history_items=5
    )
    torch.manual_seed(0)
    batches = _batches(windows, batch_size=4)
    assert torch.cat(batches).sort().values.tolist() == list(range(16))
    assert [len(set((batch % 2).tolist())) for batch in batches] == [1, 1, 1, 1]
    again = _batches(windows, batch_size=4)
    assert torch.cat(again).tolist() != torch.cat(batches).tolist()


def test_ndcg_by_hand(model: SASRec, monkeypatch: pytest.MonkeyPatch):
    """Ranks 1, 2 and, tied with 11 others, 12: (1 + 1/log2(3) + 0) / 3 = .5436."""
    scores = torch.zeros(3, NUM_ITEMS)
    scores[0, 4], scores[1, 5], scores[1, 6] = 1.0, 1.0, 2.0
    monkeypatch.setattr(model, "item_probabilities", lambda histories: scores)
    assert _ndcg(model, [[0], [0], [0]], [4, 5, 7]) == pytest.approx(0.5436, abs=1e-4)


def test_learns_a_certain_next_item():
    """In cycles the next item is certain; popularity, nearly flat there, would find one in
    twelve."""
    histories = [np.array([item, (item + 1) % NUM_ITEMS]) for item in range(NUM_ITEMS)]
    targets = np.array([(item + 2) % NUM_ITEMS for item in range(NUM_ITEMS)])
    lines: list[str] = []
    model = train_sasrec(cycles(64), NUM_ITEMS, CONFIG, (histories, targets), lines.append)
    assert (model.item_probabilities(histories).argmax(dim=1).numpy() == targets).mean() > 0.9
    assert not model.training
    assert lines[0] == "candidates: unseen" and model.config.candidates == "unseen"
    assert (
        len(lines) == 1 + CONFIG.num_epochs and "epoch 1/8: loss" in lines[1] and "left" in lines[1]
    )


def test_seen_items_are_candidates_where_users_repeat_them():
    """0 1 0 1 ...: the next item is one that was seen, and stays a candidate."""
    repeating = [np.arange(6) % 2 for _ in range(64)]
    model = train_sasrec(repeating, NUM_ITEMS, CONFIG, ([[0, 1]], [0]), lambda line: None)
    probabilities = model.item_probabilities([[0, 1]])[0]
    assert model.config.candidates == "all" and probabilities[0] > probabilities[2:].max()
    with pytest.raises(InputError, match=r"training sequence 0 \(from 0\) has an item twice"):
        train_sasrec(
            repeating,
            NUM_ITEMS,
            dataclasses.replace(CONFIG, candidates="unseen"),
            ([[0]], [1]),
            lambda line: None,
        )


def test_unseen_items_share_the_probability(model: SASRec):
    """Also of a history that is longer than what is read; and one of the whole catalogue gives no
    NaN."""
    before = model.item_probabilities([[11, 10, 1, 2, 3, 4, 5]])[0]
    model.config = dataclasses.replace(CONFIG, candidates="unseen")
    histories = [[11, 10, 1, 2, 3, 4, 5], [7], [], list(range(NUM_ITEMS))]
    after = model.item_probabilities(histories)
    seen = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    seen[histories[0]] = True
    torch.testing.assert_close(after[0], before.masked_fill(seen, 0) / before[~seen].sum())
    assert after[1, 7] == 0 and (after[2] == 1 / NUM_ITEMS).all() and after[3].isfinite().all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("unseen", [False, True])
def test_loss_against_torch_over_the_candidates_alone(unseen: bool, label_smoothing: float):
    """Row by row, the candidates' logits cut out, in float64; gradients too."""
    torch.manual_seed(0)
    windows = torch.tensor([[-1, 3, 5, 7], [2, 4, 6, 8]])
    inputs, targets = windows[:, :-1], windows[:, 1:][windows[:, :-1] != -1]
    logits = torch.randn(len(targets), NUM_ITEMS, dtype=torch.float64, requires_grad=True)
    histories = [[3], [3, 5], [2], [2, 4], [2, 4, 6]] if unseen else [[]] * 5
    losses = []
    for row, (history, target) in enumerate(zip(histories, targets.tolist(), strict=True)):
        kept = [item for item in range(NUM_ITEMS) if item not in history]
        kept_target = torch.tensor(kept.index(target))
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[row, kept], kept_target, label_smoothing=label_smoothing
            )
        )
    expected = torch.stack(losses).mean()
    loss = _loss(logits * 1, targets, _seen_before(inputs) if unseen else None, label_smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_seed_decides_and_the_callers_randomness_is_left_alone():
    valid = ([np.array([0, 1])], np.array([2]))
    config = dataclasses.replace(CONFIG, num_epochs=2)
    state = torch.get_rng_state()
    one, two = (
        train_sasrec(cycles(20), NUM_ITEMS, config, valid, lambda line: None) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    other = train_sasrec(
        cycles(20), NUM_ITEMS, dataclasses.replace(config, seed=4), valid, lambda line: None
    )
    assert not torch.equal(other.items.weight, one.items.weight)


def test_stops_early_and_returns_the_best_epoch(monkeypatch: pytest.MonkeyPatch):
    """Validation .1, .3, .2, .3 with patience 2: epoch 2 is best (a later equal one is not better),
    epoch 4 last."""
    seen: list[torch.Tensor] = []

    def ndcg(model: SASRec, histories: object, targets: object) -> float:
        seen.append(model.items.weight.detach().clone())
        return (0.1, 0.3, 0.2, 0.3)[len(seen) - 1]

    monkeypatch.setattr("ilrec.collaborative.sasrec_training._ndcg", ndcg)
    config = dataclasses.replace(CONFIG, patience=2)
    model = train_sasrec(cycles(20), NUM_ITEMS, config, ([[0]], [1]), lambda line: None)
    assert len(seen) == 4
    assert torch.equal(model.items.weight, seen[1]) and not torch.equal(model.items.weight, seen[3])


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="no training sequence has two items"):
        train_sasrec([np.array([1])], NUM_ITEMS, CONFIG, ([[0]], [1]), lambda line: None)


def test_save_and_load(model: SASRec, tmp_path: Path):
    model.save(tmp_path / "sasrec", ITEM_IDS)
    loaded = SASRec.load(tmp_path / "sasrec", ITEM_IDS)
    assert (loaded.num_items, loaded.config, loaded.training) == (NUM_ITEMS, CONFIG, False)
    histories = [[1, 2, 3], [7]]
    assert torch.equal(loaded.item_probabilities(histories), model.item_probabilities(histories))
    assert sorted(path.name for path in (tmp_path / "sasrec").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_is_refused(model: SASRec, tmp_path: Path, name: str):
    model.save(tmp_path, ITEM_IDS)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} missing"):
        SASRec.load(tmp_path, ITEM_IDS)


def test_damaged_is_refused(model: SASRec, tmp_path: Path):
    """Half a weights file; then the configuration of another catalogue."""
    model.save(tmp_path, ITEM_IDS)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="do not fit together"):
        SASRec.load(tmp_path, ITEM_IDS)
    (tmp_path / "model.safetensors").write_bytes(weights)
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
    with pytest.raises(
        InputError, match=f"{message}; train it on this data with tools/train_sasrec.py"
    ):
        SASRec.load(tmp_path, item_ids)


def test_a_filter_of_an_older_version_is_refused(model: SASRec, tmp_path: Path):
    model.save(tmp_path, ITEM_IDS)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["items_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        InputError, match="does not say which items its numbers mean .*; train it on this data"
    ):
        SASRec.load(tmp_path, ITEM_IDS)


def test_new_weights_never_lie_beside_old_settings(
    model: SASRec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted between the two, the second save leaves an incomplete directory, not the first
    one's items."""
    model.save(tmp_path, ITEM_IDS)
    monkeypatch.setattr("ilrec.collaborative.sasrec.write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path, ITEM_IDS[::-1])
    with pytest.raises(InputError, match="config.json missing"):
        SASRec.load(tmp_path, ITEM_IDS)


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_popularity_by_hand():
    assert popularity_scores([np.array([0, 2, 2]), np.array([2])], num_items=4).tolist() == [
        1,
        0,
        3,
        0,
    ]
