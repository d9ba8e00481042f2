"""token_rewards: by hand on a small trie, against the definition on random ones, and with sums in
which small numbers could get lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilrec.collaborative.token_reward import token_rewards
from ilrec.items.trie import ItemTrie

EOS = 9
# Items 3 and 4 have the same tokens; item 2 is shorter than the others.
SEQUENCES = [[1, 5, EOS], [1, 6, EOS], [2, EOS], [1, 7, EOS], [1, 7, EOS]]
TRIE = ItemTrie.from_sequences(SEQUENCES)


def rows_of(rewards: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[dict[int, float]]:
    """{token: reward} of each row."""
    offsets, token_ids, values = rewards
    bounds = offsets.tolist()
    rows = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        tokens = token_ids[begin:end].tolist()
        rows.append(dict(zip(tokens, values[begin:end].tolist(), strict=True)))
    return rows


def test_rewards_by_hand():
    """p = (.1, .2, .3, .15, .25), and target 1 is [1, 6, EOS].

    Root: the items 0, 1, 3 and 4 start with 1, together .7; item 2 starts with 2: .3. After 1: 5
    has .1/.7, 6 has .2/.7, 7 has (.15 + .25)/.7. After 1 6: EOS alone, 1. Target 2 is [2, EOS]: the
    row of the root again, then EOS, 1.
    """
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]] * 2)
    rewards = token_rewards(probabilities, [1, 2], TRIE)
    assert [part.dtype for part in rewards] == [torch.int64, torch.int64, torch.float32]
    root = {1: 0.7, 2: 0.3}
    expected = [root, {5: 1 / 7, 6: 2 / 7, 7: 4 / 7}, {EOS: 1.0}, root, {EOS: 1.0}]
    for row, expected_row in zip(rows_of(rewards), expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-6)


def test_each_target_reads_its_own_user():
    """User 0 likes item 2 alone, user 1 item 0 alone. Both targets are item 2, so that the rows 0
    and 2 are the root."""
    probabilities = torch.tensor([[0.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0]])
    rows = rows_of(token_rewards(probabilities, torch.tensor([2, 2]), TRIE))
    assert rows[0] == {1: 0.0, 2: 1.0}
    assert rows[2] == {1: 1.0, 2: 0.0}


def test_prefix_without_mass_is_uniform():
    """All mass is on item 2, so nothing probable starts with token 1. Its three children get 1/3
    each."""
    probabilities = np.array([[0.0, 0, 1, 0, 0]])
    rows = rows_of(token_rewards(probabilities, [0], TRIE))
    assert rows[1] == pytest.approx({5: 1 / 3, 6: 1 / 3, 7: 1 / 3})


def test_small_mass_beside_large_is_not_lost():
    """After token 1 the masses are 1e-30 and 3e-30, beside an item of mass 1: 1/4 and 3/4. As a
    difference of running sums they would be 1 + 1e-30 - 1 = 0."""
    trie = ItemTrie.from_sequences([[0, EOS], [1, 5, EOS], [1, 6, EOS]])
    rows = rows_of(token_rewards(np.array([[1.0, 1e-30, 3e-30]]), [1], trie))
    assert rows[1] == pytest.approx({5: 0.25, 6: 0.75}, rel=1e-6)


def reward_by_definition(
    sequences: list[list[int]], probabilities: np.ndarray, prefix: list[int]
) -> dict[int, float]:
    """The equation of the module's docstring, item by item."""
    mass: dict[int, float] = {}
    for item, sequence in enumerate(sequences):
        if sequence[: len(prefix)] == prefix:
            token = sequence[len(prefix)]
            mass[token] = mass.get(token, 0.0) + probabilities[item]
    total = sum(mass.values())
    return {token: value / total for token, value in mass.items()}


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed: int):
    """60 random items of 1 to 4 tokens and 5 users. Every row sums to 1."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(60):
        tokens = rng.integers(0, 4, size=rng.integers(1, 5))
        sequences.append([*tokens.tolist(), EOS])
    probabilities = rng.dirichlet(np.full(60, 0.3), size=5)
    targets = rng.integers(0, 60, size=5)
    trie = ItemTrie.from_sequences(sequences)
    rows = iter(rows_of(token_rewards(torch.from_numpy(probabilities), targets, trie)))
    for user, target in enumerate(targets):
        for place in range(len(sequences[target])):
            prefix = sequences[target][:place]
            expected = reward_by_definition(sequences, probabilities[user], prefix)
            row = next(rows)
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-7)
            assert sum(row.values()) == pytest.approx(1.0, abs=1e-6)
    assert next(rows, None) is None


@pytest.mark.parametrize(
    "probabilities", [np.ones((1, 4)), np.array([[1.0, -1, 0, 0, 0]]), np.full((1, 5), np.nan)]
)
def test_wrong_probabilities_are_refused(probabilities: np.ndarray):
    with pytest.raises(ValueError, match="item_probabilities_BI"):
        token_rewards(probabilities, [0], TRIE)
