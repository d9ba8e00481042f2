"""token_rewards: hand-derived rewards on a small trie, an oracle on random ones, and what
cancellation would spoil."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilrec.collaborative.token_reward import token_rewards
from ilrec.items.trie import ItemTrie

EOS = 9
# Items 3 and 4 are spelled alike; item 2 is shorter than the others.
SEQUENCES = [[1, 5, EOS], [1, 6, EOS], [2, EOS], [1, 7, EOS], [1, 7, EOS]]


def rows(
    offsets: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor
) -> list[dict[int, float]]:
    bounds = offsets.tolist()
    return [
        dict(zip(token_ids[b:e].tolist(), values[b:e].tolist(), strict=True))
        for b, e in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def test_rewards_by_hand():
    """p = (.1, .2, .3, .15, .25), target 1 = [1, 6, EOS].

    Root: items 0, 1, 3, 4 start with 1: .7; item 2 starts with 2: .3. After 1: 5 -> .1/.7, 6 ->
    .2/.7, 7 -> (.15 + .25)/.7. After 1 6: EOS alone -> 1. Target 2 = [2, EOS]: the root row again,
    then EOS -> 1.
    """
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]] * 2)
    result = token_rewards(probabilities, [1, 2], ItemTrie.from_sequences(SEQUENCES))
    assert [part.dtype for part in result] == [torch.int64, torch.int64, torch.float32]
    root = {1: 0.7, 2: 0.3}
    expected = [root, {5: 1 / 7, 6: 2 / 7, 7: 4 / 7}, {EOS: 1.0}, root, {EOS: 1.0}]
    for row, want in zip(rows(*result), expected, strict=True):
        assert row == pytest.approx(want, rel=1e-6)


def test_each_target_reads_its_own_user():
    """User 0 believes in item 2 alone, user 1 in item 0 alone; both targets are item 2: rows 0 and
    2 are the root."""
    probabilities = torch.tensor([[0.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0]])
    got = rows(
        *token_rewards(probabilities, torch.tensor([2, 2]), ItemTrie.from_sequences(SEQUENCES))
    )
    assert (got[0], got[2]) == ({1: 0.0, 2: 1.0}, {1: 1.0, 2: 0.0})


def test_prefix_without_mass_is_uniform():
    """All mass is on item 2, so nothing probable starts with token 1: its three children get 1/3
    each."""
    probabilities = np.array([[0.0, 0, 1, 0, 0]])
    got = rows(*token_rewards(probabilities, [0], ItemTrie.from_sequences(SEQUENCES)))
    assert got[1] == pytest.approx({5: 1 / 3, 6: 1 / 3, 7: 1 / 3})


def test_small_mass_beside_large_is_not_cancelled():
    """After token 1 the mass is 1e-30 against 3e-30, beside an item of mass 1: 1/4 and 3/4. 1 +
    1e-30 - 1 is 0."""
    trie = ItemTrie.from_sequences([[0, EOS], [1, 5, EOS], [1, 6, EOS]])
    got = rows(*token_rewards(np.array([[1.0, 1e-30, 3e-30]]), [1], trie))
    assert got[1] == pytest.approx({5: 0.25, 6: 0.75}, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed: int):
    """Against the equation, item by item, on random ragged items; every row sums to 1."""
    rng = np.random.default_rng(seed)
    sequences = [[*rng.integers(0, 4, size=rng.integers(1, 5)).tolist(), EOS] for _ in range(60)]
    probabilities = rng.dirichlet(np.full(60, 0.3), size=5)
    targets = rng.integers(0, 60, size=5)
    got = rows(
        *token_rewards(torch.from_numpy(probabilities), targets, ItemTrie.from_sequences(sequences))
    )
    prefixes = [
        (user, sequences[item][:t])
        for user, item in enumerate(targets)
        for t in range(len(sequences[item]))
    ]
    for row, (user, prefix) in zip(got, prefixes, strict=True):
        below: dict[int, float] = {}
        for item, sequence in enumerate(sequences):
            if sequence[: len(prefix)] == prefix:
                token = sequence[len(prefix)]
                below[token] = below.get(token, 0.0) + probabilities[user, item]
        total = sum(below.values())
        assert row == pytest.approx(
            {token: mass / total for token, mass in below.items()}, rel=1e-5, abs=1e-7
        )
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "probabilities", [np.ones((1, 4)), np.array([[1.0, -1, 0, 0, 0]]), np.full((1, 5), np.nan)]
)
def test_wrong_probabilities_are_refused(probabilities: np.ndarray):
    with pytest.raises(ValueError, match="item_probabilities_BI"):
        token_rewards(probabilities, [0], ItemTrie.from_sequences(SEQUENCES))
