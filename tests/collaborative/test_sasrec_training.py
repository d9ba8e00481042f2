"""Training of SASRec: windows, batches and loss by hand; that it learns what can be learnt; that
the seed decides."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_filters import CONFIG, NUM_ITEMS, make_model

from ilrec.collaborative.sasrec import SASRec
from ilrec.collaborative.sasrec_training import (
    _batches,
    _loss,
    _ndcg,
    _seen_before,
    _windows,
    train_sasrec,
)
from ilrec.errors import InputError


def cycles(num_users: int) -> list[np.ndarray]:
    """User u sees u, u + 1, u + 2, ... modulo the catalogue: the next item is certain."""
    return [(np.arange(user % 4 + 4) + user) % NUM_ITEMS for user in range(num_users)]


def no_log(line: str) -> None:
    pass


def test_windows_by_hand():
    """max_history_items 3. The sequence 0..6 is cut from its newest end: [3 4 5 6], then [0 1 2 3],
    where 3 is a target. The sequence 7 8 is one padded window. A single item has no target.

    So each item but the first of a sequence is a target once.
    """
    windows = _windows([np.arange(7), np.array([7, 8]), np.array([9])], max_history_items=3)
    assert windows.tolist() == [[3, 4, 5, 6], [0, 1, 2, 3], [-1, -1, 7, 8]]
    inputs, targets = windows[:, :-1], windows[:, 1:]
    assert sorted(targets[inputs >= 0].tolist()) == [1, 2, 3, 4, 5, 6, 8]


def test_batches_hold_each_window_once_and_like_lengths():
    """Lengths 6 and 2 in turn, eight of each, in batches of four: two batches of short windows and
    two of long ones."""
    sequences = [np.arange(2 if number % 2 else 6) for number in range(16)]
    windows = _windows(sequences, max_history_items=5)
    torch.manual_seed(0)
    batches = _batches(windows, batch_size=4)
    assert torch.cat(batches).sort().values.tolist() == list(range(16))
    for batch in batches:
        assert len(set((batch % 2).tolist())) == 1
    again = _batches(windows, batch_size=4)
    assert torch.cat(again).tolist() != torch.cat(batches).tolist()


def test_ndcg_by_hand(monkeypatch: pytest.MonkeyPatch):
    """The ranks are 1, 2 and, tied with 11 others, 12: (1 + 1/log2(3) + 0) / 3 = .5436."""
    scores = torch.zeros(3, NUM_ITEMS)
    scores[0, 4] = 1.0
    scores[1, 5], scores[1, 6] = 1.0, 2.0
    model = make_model()
    monkeypatch.setattr(model, "item_probabilities", lambda histories: scores)
    assert _ndcg(model, [[0], [0], [0]], [4, 5, 7]) == pytest.approx(0.5436, abs=1e-4)


def test_learns_a_certain_next_item():
    """In cycles the next item is certain. Popularity, nearly the same for all items there, would
    find one in twelve."""
    histories = [np.array([item, (item + 1) % NUM_ITEMS]) for item in range(NUM_ITEMS)]
    targets = np.array([(item + 2) % NUM_ITEMS for item in range(NUM_ITEMS)])
    lines: list[str] = []
    model = train_sasrec(cycles(64), NUM_ITEMS, CONFIG, (histories, targets), lines.append)

    found = model.item_probabilities(histories).argmax(dim=1).numpy()
    assert (found == targets).mean() > 0.9
    assert not model.training
    assert model.config.candidates == "unseen"
    assert lines[0] == "candidates: unseen"
    assert len(lines) == 1 + CONFIG.num_epochs
    assert "epoch 1/8: loss" in lines[1]
    assert "left" in lines[1]


def test_seen_items_are_candidates_if_users_repeat_them():
    """0 1 0 1 ...: the next item is one that was seen, and stays a candidate."""
    repeating = [np.arange(6) % 2 for _ in range(64)]
    model = train_sasrec(repeating, NUM_ITEMS, CONFIG, ([[0, 1]], [0]), no_log)
    probabilities = model.item_probabilities([[0, 1]])[0]
    assert model.config.candidates == "all"
    assert probabilities[0] > probabilities[2:].max()

    unseen = dataclasses.replace(CONFIG, candidates="unseen")
    with pytest.raises(InputError, match=r"training sequence 0 \(from 0\) has an item twice"):
        train_sasrec(repeating, NUM_ITEMS, unseen, ([[0]], [1]), no_log)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("unseen", [False, True])
def test_loss_against_torch_over_the_candidates_alone(unseen: bool, label_smoothing: float):
    """Torch's cross-entropy row by row, with only the candidates' logits, in float64. Gradients
    too."""
    torch.manual_seed(0)
    windows = torch.tensor([[-1, 3, 5, 7], [2, 4, 6, 8]])
    inputs = windows[:, :-1]
    targets = windows[:, 1:][inputs != -1]
    logits = torch.randn(len(targets), NUM_ITEMS, dtype=torch.float64, requires_grad=True)
    histories = [[3], [3, 5], [2], [2, 4], [2, 4, 6]] if unseen else [[]] * 5
    losses = []
    for row, (history, target) in enumerate(zip(histories, targets.tolist(), strict=True)):
        kept = [item for item in range(NUM_ITEMS) if item not in history]
        loss_of_row = torch.nn.functional.cross_entropy(
            logits[row, kept], torch.tensor(kept.index(target)), label_smoothing=label_smoothing
        )
        losses.append(loss_of_row)
    expected = torch.stack(losses).mean()

    # A copy, because _loss writes into its logits.
    seen = _seen_before(inputs) if unseen else None
    loss = _loss(logits * 1, targets, seen, label_smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_seed_decides_and_the_callers_randomness_is_left_alone():
    valid = ([np.array([0, 1])], np.array([2]))
    config = dataclasses.replace(CONFIG, num_epochs=2)
    state = torch.get_rng_state()
    one = train_sasrec(cycles(20), NUM_ITEMS, config, valid, no_log)
    two = train_sasrec(cycles(20), NUM_ITEMS, config, valid, no_log)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)

    other_seed = dataclasses.replace(config, seed=4)
    other = train_sasrec(cycles(20), NUM_ITEMS, other_seed, valid, no_log)
    assert not torch.equal(other.items.weight, one.items.weight)


def test_stops_early_and_returns_the_best_epoch(monkeypatch: pytest.MonkeyPatch):
    """Validation gives .1, .3, .2, .3, and patience is 2. Epoch 2 is the best, because a later
    equal one is not better, and epoch 4 is the last."""
    weights: list[torch.Tensor] = []

    def ndcg(model: SASRec, histories: object, targets: object) -> float:
        weights.append(model.items.weight.detach().clone())
        return (0.1, 0.3, 0.2, 0.3)[len(weights) - 1]

    monkeypatch.setattr("ilrec.collaborative.sasrec_training._ndcg", ndcg)
    config = dataclasses.replace(CONFIG, patience=2)
    model = train_sasrec(cycles(20), NUM_ITEMS, config, ([[0]], [1]), no_log)
    assert len(weights) == 4
    assert torch.equal(model.items.weight, weights[1])
    assert not torch.equal(model.items.weight, weights[3])


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="no training sequence has two items"):
        train_sasrec([np.array([1])], NUM_ITEMS, CONFIG, ([[0]], [1]), no_log)
